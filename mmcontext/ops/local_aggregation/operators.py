"""The three registered torch operators: schemas, shape functions, and the backends in Python.

Everything else is in the compiled library (``csrc/operators.cpp``): checks of sizes, derivatives,
autocast, and the choice of its own backends. Without the library, ``portable.py`` takes over.
"""
from typing import Callable, List, Sequence

import torch
from torch import Tensor

from mmcontext.ops.local_aggregation.backends import (
    Geometry,
    choose,
    empty_feature,
    empty_kernels,
)
from mmcontext.ops.native_library import UNAVAILABLE

_GEOMETRY = ('int[] kernel_size, int[] stride, int[] padding, int[] dilation, '
             'bool interleaved, str backend')
LIBRARY = torch.library.Library('mmcontext', 'FRAGMENT')
LIBRARY.define(f'local_aggregation(Tensor x, Tensor w, {_GEOMETRY}) -> Tensor')
LIBRARY.define('local_aggregation_grad_input('
                f'Tensor grad, Tensor w, SymInt[] input_size, {_GEOMETRY}) -> Tensor')
LIBRARY.define('local_aggregation_grad_weight('
                f'Tensor grad, Tensor x, SymInt groups, {_GEOMETRY}) -> Tensor')

forward_op = torch.ops.mmcontext.local_aggregation.default
grad_input_op = torch.ops.mmcontext.local_aggregation_grad_input.default
grad_weight_op = torch.ops.mmcontext.local_aggregation_grad_weight.default


def _geometry(kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
              dilation: Sequence[int], interleaved: bool) -> Geometry:
    return Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation),
                    interleaved)


def check_same_kind(names: str, a: Tensor, b: Tensor) -> None:
    """Raise unless two operands share device and dtype."""
    if a.device != b.device:
        raise ValueError(f'{names} must be on one device, got {a.device} and {b.device}')
    if a.dtype != b.dtype:
        raise TypeError(f'{names} must have one dtype outside autocast, got {a.dtype} and '
                        f'{b.dtype}')


def _forward(x: Tensor, w: Tensor, kernel_size: List[int], stride: List[int],
             padding: List[int], dilation: List[int], interleaved: bool, backend: str) -> Tensor:
    check_same_kind('x and w', x, w)
    geometry = _geometry(kernel_size, stride, padding, dilation, interleaved)
    return choose(x, w, geometry, backend)[1].forward(x, w, geometry)


def _grad_input(grad: Tensor, w: Tensor, input_size: List[int], kernel_size: List[int],
                stride: List[int], padding: List[int], dilation: List[int], interleaved: bool,
                backend: str) -> Tensor:
    geometry = _geometry(kernel_size, stride, padding, dilation, interleaved)
    return choose(grad, w, geometry, backend)[1].grad_input(grad, w, tuple(input_size), geometry)


def _grad_weight(grad: Tensor, x: Tensor, groups: int, kernel_size: List[int],
                 stride: List[int], padding: List[int], dilation: List[int], interleaved: bool,
                 backend: str) -> Tensor:
    geometry = _geometry(kernel_size, stride, padding, dilation, interleaved)
    return choose(grad, x, geometry, backend)[1].grad_weight(grad, x, groups, geometry)


def _forward_fake(x, w, *geometry_and_backend):
    check_same_kind('x and w', x, w)
    return empty_feature(x, x.shape[1], w.shape[-2], w.shape[-1])


def _grad_input_fake(grad, w, input_size, *geometry_and_backend):
    return empty_feature(grad, grad.shape[1], *input_size)


def _grad_weight_fake(grad, x, groups, kernel_size, *geometry_and_backend):
    return empty_kernels(x, groups, kernel_size[0] * kernel_size[1], *grad.shape[-2:])


def autocast_dtype(device_type: str) -> torch.dtype:
    """The dtype that autocast computes in on a kind of device."""
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4
        return torch.get_autocast_dtype(device_type)
    return (torch.get_autocast_gpu_dtype() if device_type == 'cuda'
            else torch.get_autocast_cpu_dtype())


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for a kind of device, 'cpu' or 'cuda'."""
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4
        return torch.is_autocast_enabled(device_type)
    return (torch.is_autocast_enabled() if device_type == 'cuda'
            else torch.is_autocast_cpu_enabled())


def autocast_kernel(op: Callable, operands: int, device_type: str) -> Callable:
    """Kernel that casts the first arguments to autocast's dtype, except float64.

    Args:
        op: The operator.
        operands: How many of its arguments are tensors, or None.
        device_type: Kind of device that autocast is for.
    """

    def cast_and_call(*arguments) -> Tensor:
        tensors, options = arguments[:operands], arguments[operands:]
        if not any(t is not None and t.dtype == torch.float64 for t in tensors):
            dtype = autocast_dtype(device_type)
            tensors = [None if t is None else t.to(dtype) for t in tensors]
        with torch.autocast(device_type, enabled=False):
            return op(*tensors, *options)

    return cast_and_call


def register_fake(name: str, function) -> None:
    """Give the operator ``mmcontext::name`` its shape function."""
    if hasattr(torch.library, 'register_fake'):  # torch 2.4
        torch.library.register_fake(f'mmcontext::{name}', function, lib=LIBRARY)
    else:
        LIBRARY.impl(name, function, 'Meta')


# The compiled library holds the kernels of the operators. If a backend in Python is chosen, it
# calls the operators of the same names in its own namespace.
_SERVED_HERE = LIBRARY if UNAVAILABLE else torch.library.Library('mmcontext_native', 'IMPL')
for _name, _kernel, _fake in (
        ('local_aggregation', _forward, _forward_fake),
        ('local_aggregation_grad_input', _grad_input, _grad_input_fake),
        ('local_aggregation_grad_weight', _grad_weight, _grad_weight_fake)):
    _SERVED_HERE.impl(_name, _kernel, 'CompositeExplicitAutograd')
    register_fake(_name, _fake)
