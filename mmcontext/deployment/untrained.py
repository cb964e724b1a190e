"""Makes an export of untrained weights worth comparing."""
from typing import Dict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Deviation that the outputs of a detector's last layers get. Untrained ones are so alike that
# the order of their scores is that of the rounding errors.
_DEVIATIONS = dict(rpn_cls=2., rpn_reg=0.3, retina_cls=2., retina_reg=0.3, fc_cls=3., fc_reg=1.,
                   conv_logits=2.)
# One class in hundred and one prior in hundred of a head of sigmoids.
_SIGMOID_BIAS = -6.


def _rescale(layer: nn.Module, deviation: float, bias: float):
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        handle.remove()
        axes = [axis for axis in range(output.dim()) if axis != 1]
        mean, scale = output.mean(axes), deviation / output.std()
        module.weight.mul_(scale)
        module.bias.copy_((module.bias - mean) * scale + bias)
        return module(*inputs)

    handle = layer.register_forward_hook(hook)


@torch.no_grad()
def make_decided(model: nn.Module, run, deviations: Dict[str, float] = _DEVIATIONS) -> None:
    """Give untrained weights outputs that differ by more than rounding.

    Norms take the statistics of what is run, as after training, so that no activation explodes;
    the last layers of a detector are scaled to the spread of a trained one's.

    Args:
        model: Changed in place; left in eval mode.
        run (callable): Runs the model on a few images.
        deviations: Deviation of the outputs of the layers of these names.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    run()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.eval()
    for name, module in model.named_modules():
        last = name.rpartition('.')[2]
        if last in deviations:
            _rescale(module, deviations[last], _SIGMOID_BIAS if last == 'retina_cls' else 0.)
    run()
