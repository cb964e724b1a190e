"""What the kernel of a continuous convolution depends on: the tensors of its network."""
from typing import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mmcontext.layers._modules import is_touched
from mmcontext.ops import native_library


def has_values(tensor: Tensor) -> bool:
    """Whether numbers can be read from it: neither meta nor a stand-in for recording a graph."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != 'meta'


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, several times faster than asking for them by name.

    Finding out that a kernel may be kept has to be cheaper than sampling it.
    """
    # The copies that DataParallel makes have their parameters elsewhere.
    parameters = module.__dict__.get('_former_parameters') or module._parameters
    for tensors in (parameters, module._buffers):
        for tensor in tensors.values():
            if tensor is not None:
                yield tensor
    for child in module._modules.values():
        yield from tensors_of(child)


def is_watched(module: nn.Module) -> bool:
    """Whether anybody would notice that a module, or one in it, is not called."""
    return is_touched(module) or any(map(is_watched, module._modules.values()))


def divide_weight(linear: nn.Module, divisor: float) -> None:
    """Divide the weight of a linear layer, also where it is computed from other parameters."""
    if is_parametrized(linear, 'weight'):
        linear.weight = linear.weight / divisor
        return
    # The last two are what pruning and weight norm make the weight of.
    for module in linear.modules():
        for name in ('weight', 'weight_orig', 'weight_g'):
            if name in module._parameters:
                module._parameters[name].div_(divisor)
                return


def values_of(tensors: Sequence[Tensor]) -> Tensor:
    """The values of all tensors, in one axis."""
    return torch.cat([t.reshape(-1) for t in tensors])


def same_values(tensors: Sequence[Tensor], values: Tensor) -> bool:
    """Whether the tensors, on the same device, still have those values."""
    if values.device.type == 'cpu' and not native_library.UNAVAILABLE:
        return torch.ops.mmcontext_native.same_values(tensors, values)
    return torch.equal(values_of(tensors), values)
