"""What the kernel of a continuous convolution depends on, and its cache."""
from typing import Any, Callable, Iterator, List, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mmcontext.layers._modules import is_touched
from mmcontext.ops import native_library
from mmcontext.ops.tracing import is_capturing


def has_values(tensor: Tensor) -> bool:
    """Whether its values can be read: it is neither meta nor a stand-in for recording a graph."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != 'meta'


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all its submodules, several times faster than ``modules()``."""
    stack = [module]
    while stack:
        one = stack.pop()
        yield one
        stack.extend(one._modules.values())


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, several times faster than with the methods of ``nn.Module``.

    Finding out that a cached kernel is still valid has to be cheaper than sampling it.
    """
    for one in _inside(module):
        # DataParallel's replicas keep their parameters elsewhere.
        for tensor in (one.__dict__.get('_former_parameters') or one._parameters).values():
            if tensor is not None:
                yield tensor
        for tensor in one._buffers.values():
            if tensor is not None:
                yield tensor


def is_watched(module: nn.Module) -> bool:
    """Whether it would be noticed that a module, or one of its submodules, is not called."""
    return any(map(is_touched, _inside(module)))


def divide_weight(linear: nn.Module, divisor: float) -> None:
    """Divide the weight of a linear layer, even if it is computed from other parameters."""
    if is_parametrized(linear, 'weight'):
        linear.weight = linear.weight / divisor
        return
    # The last two are what pruning and weight norm compute the weight from.
    for module in linear.modules():
        for name in ('weight', 'weight_orig', 'weight_g'):
            if name in module._parameters:
                module._parameters[name].div_(divisor)
                return


def values_of(tensors: Sequence[Tensor]) -> Tensor:
    """The values of all tensors, flattened and concatenated."""
    return torch.cat([t.reshape(-1) for t in tensors])


def same_values(tensors: Sequence[Tensor], values: Tensor) -> bool:
    """Whether the tensors, on the same device, still have these values."""
    if values.device.type == 'cpu' and not native_library.UNAVAILABLE:
        return torch.ops.mmcontext_native.same_values(tensors, values)
    return torch.equal(values_of(tensors), values)


class KeptResult:
    """A result computed from tensors, cached until the key or the values of a tensor change.

    Values are compared, not version counters: those miss updates through ``.data``, which is how
    exponential moving averages are swapped in. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._noted: Optional[tuple] = None

    def __reduce__(self) -> tuple:
        return KeptResult, ()

    def __bool__(self) -> bool:
        return self._noted is not None

    def clear(self) -> None:
        """Forget it."""
        self._noted = None

    def get(self, key: Any, tensors: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        """The result; ``compute`` is called if it is not cached."""
        noted = self._noted
        if noted is None or noted[0] != key or not same_values(tensors, noted[1]):
            with torch.no_grad():
                noted = self._noted = (key, values_of(tensors), compute())
        return noted[2]


class Positions:
    """Coordinates of taps, cached between calls; copies and pickles are empty.

    Every replay of a CUDA graph reads the coordinates of the last call before its capture: they
    are kept alive from then on.
    """

    def __init__(self) -> None:
        self._last: Optional[tuple] = None
        self._captured: List[Tensor] = []

    def __reduce__(self) -> tuple:
        return Positions, ()

    def get(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        """The coordinates; ``make`` is called if they are not cached."""
        last = self._last
        if last is None or last[0] != key:
            last = key, make()
            if not has_values(last[1]):
                return last[1]
            self._last = last
        if is_capturing(last[1]):
            self._captured.append(last[1])
        return last[1]
