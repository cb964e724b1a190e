"""Initialisation missing in mmengine: biases as drawn by torch's own layers."""
import math

from mmengine.model.weight_init import KaimingInit
from torch import nn

from mmcontext.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class KaimingTorchBias(KaimingInit):
    """mmengine's ``Kaiming`` with biases uniform in +-1 / sqrt(fan_in) instead of constant.

    This equals the initialisation of networks whose code initialises the weights of their
    convolutions and leaves the biases to torch.

    Args:
        layer (str | list[str]): Classes of the layers, subclasses included.
        **kwargs: ``a``, ``mode``, ``nonlinearity`` and ``distribution`` of mmengine's
            ``Kaiming``.
    """

    def __call__(self, module: nn.Module) -> None:
        super().__call__(module)
        for layer in module.modules():
            names = {base.__name__ for base in type(layer).__mro__}
            if names.intersection(self.layer) and layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.bias, -bound, bound)
