"""Makes exports of untrained weights worth comparing."""
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Standard deviation and mean given to the outputs of a detector's last layers. Untrained ones are
# so similar that rounding errors decide the order of their scores.
_OUTPUTS = dict(rpn_cls=(2., 0.), rpn_reg=(0.3, 0.), retina_cls=(1.5, 0.), retina_reg=(0.3, 0.),
                fc_cls=(1., 0.), fc_reg=(1., 0.), conv_logits=(1., 2.))
# New weight of the last norm of a branch, if it was initialised to zero.
_BRANCH = 0.05
# Pairs of region and class that pass; with more, the detector's limit would make the choice.
_CANDIDATES, _PASSES, _STEP = 40, 0.05, 0.25


def _thin_out(name: str, layer: nn.Module, output: Tensor) -> None:
    """Lower the scores until few pass: via a softmax's background, or all sigmoids."""
    output = output.clone()
    if name == 'fc_cls':
        while (output.softmax(1)[:, :-1] > _PASSES).sum() > _CANDIDATES:
            output[:, -1] += _STEP
            layer.bias[-1] += _STEP
    elif name == 'retina_cls':
        while (output.sigmoid() > _PASSES).sum() > _CANDIDATES:
            output -= _STEP
            layer.bias -= _STEP


def _rescale(name: str, layer: nn.Module, stages: int) -> None:
    """Change the layer's weights at its next call, once.

    The logits of several stages are averaged, which divides their spread by the square root of
    the number of stages.
    """
    deviation, bias = _OUTPUTS[name]
    spread = stages**0.5

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        handle.remove()
        axes = [axis for axis in range(output.dim()) if axis != 1]
        mean, scale = output.mean(axes), spread * deviation / output.std()
        module.weight.mul_(scale)
        module.bias.copy_((module.bias - mean) * scale + bias)
        _thin_out(name, module, module(*inputs) / spread)
        return module(*inputs)

    handle = layer.register_forward_hook(hook)


@torch.no_grad()
def make_decided(model: nn.Module, run: Callable[[], object]) -> None:
    """Change untrained weights so that outputs differ by more than rounding errors.

    Norms take the statistics of the run, as after training, so that no activation explodes;
    residual branches that start at zero contribute to the sum; the last layers of a detector are
    scaled to the spread of a trained one.

    Args:
        model: Changed in place; left in eval mode.
        run: Runs the model on a few images.
    """
    for module in model.modules():
        if isinstance(module, (_BatchNorm, nn.GroupNorm)) and not module.weight.any():
            module.weight.fill_(_BRANCH)
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
    layers = [(name.rpartition('.')[2], module) for name, module in model.named_modules()]
    stages = sum(name == 'fc_cls' for name, _ in layers)
    for name, module in layers:
        if name in _OUTPUTS:
            _rescale(name, module, stages if name == 'fc_cls' else 1)
    run()
