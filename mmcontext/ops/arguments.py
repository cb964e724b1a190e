"""Arguments given as one number for all axes or one per axis, and the resulting sizes.

(``tuple`` and ``all`` take lists here because torch.compile of torch 2.15 gives up on generators.)
"""
import functools
from typing import Callable, Sequence, Tuple, Union

import torch

from mmcontext.ops.tracing import is_compiling

IntPair = Union[int, Tuple[int, int]]


def per_axis(name: str, value: Union[int, Sequence[int]], dim: int, least: int) -> Tuple[int, ...]:
    """The numbers of all axes.

    Args:
        name: What to call the argument in the error.
        value: An int, or ``dim`` of them.
        dim: Number of axes.
        least: Smallest number allowed.

    Raises:
        ValueError: The value is anything else, or a number is too small.
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
    """Size of a convolution's output along every axis; below 1 if the kernel does not fit."""
    return tuple([
        (size + 2 * pad - dil * (kernel - 1) - 1) // step + 1
        for size, pad, dil, kernel, step in zip(sizes, padding, dilation, kernel_size, stride)])


def remembered(check: Callable) -> Callable:
    """Cache a check of shapes, whose arguments are the same at every step.

    It runs again if the arguments cannot be cached: lists, and the symbolic sizes of a graph that
    is being recorded.
    """
    once = functools.lru_cache(maxsize=4096)(check)

    @functools.wraps(check)
    def checked(*arguments):
        if is_compiling() or torch.jit.is_tracing():
            return check(*arguments)
        try:
            return once(*arguments)
        except TypeError:
            return check(*arguments)

    return checked
