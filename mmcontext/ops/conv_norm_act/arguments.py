"""The parts of the operator as values."""
from typing import NamedTuple, Optional, Tuple, Union

from torch import Tensor

ACTIVATIONS = ('none', 'relu', 'silu')


class Convolution(NamedTuple):
    """A zero-padded 2-D convolution; every pair is (vertical, horizontal)."""
    weight: Tensor  # [Co, C / groups, Kh, Kw]
    bias: Optional[Tensor] = None  # [Co]
    stride: Tuple[int, int] = (1, 1)
    padding: Tuple[int, int] = (0, 0)
    dilation: Tuple[int, int] = (1, 1)
    groups: int = 1


class BatchNorm(NamedTuple):
    """A batch norm with given statistics; every tensor is [C]."""
    mean: Tensor
    variance: Tensor
    weight: Optional[Tensor] = None
    bias: Optional[Tensor] = None
    eps: float = 1e-5


class GroupNorm(NamedTuple):
    """A group norm; weight and bias are [C]."""
    groups: int
    weight: Optional[Tensor] = None
    bias: Optional[Tensor] = None
    eps: float = 1e-5


Norm = Union[BatchNorm, GroupNorm]
