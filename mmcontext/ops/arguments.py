"""Arguments that are one number for all axes or one an axis, and the sizes they lead to.

(Lists inside ``tuple`` and ``all`` for torch.compile: that of torch 2.15 gives up on generators.)
"""
from typing import Sequence, Tuple, Union

IntPair = Union[int, Tuple[int, int]]


def per_axis(name: str, value: Union[int, Sequence[int]], dim: int, least: int) -> Tuple[int, ...]:
    """The numbers of all axes.

    Args:
        name: What to call the argument in the error.
        value: An int, or ``dim`` of them.
        dim: Number of axes.
        least: Smallest number allowed.

    Raises:
        ValueError: It is anything else, or a number is too small.
    """
    if isinstance(value, int):
        values = (value, ) * dim
    else:
        values = tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != dim or not all([isinstance(v, int) and v >= least for v in values]):
        raise ValueError(f'{name} must be an int or {dim} ints, at least {least}, got {value!r}')
    return values


def output_size(sizes: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int],
                padding: Sequence[int], dilation: Sequence[int]) -> Tuple[int, ...]:
    """Size of a convolution's output along every axis; below 1 where the kernel does not fit."""
    return tuple([
        (size + 2 * pad - dil * (kernel - 1) - 1) // step + 1
        for size, pad, dil, kernel, step in zip(sizes, padding, dilation, kernel_size, stride)])
