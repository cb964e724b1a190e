"""The three registered torch operators.

The aggregation is linear in the feature map and in the kernels, so it and its two gradients
are closed under differentiation: each one's derivatives are the other two, and derivatives of
any order follow. Only the two operands are saved for backward.
"""
from typing import List, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd import Function

from mmcontext.ops.local_aggregation.backends import (
    Geometry,
    choose,
    empty_feature,
    empty_kernels,
)

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


class _Forward(Function):

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, *options) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.options = options
        with torch._C._AutoDispatchBelowAutograd():
            return forward_op(x, w, *options)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple:
        x, w = ctx.saved_tensors
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_input_op(grad, w, x.shape[-2:], *ctx.options)
        if ctx.needs_input_grad[1]:
            grad_w = grad_weight_op(grad, x, w.shape[1], *ctx.options)
        return (grad_x, grad_w, *(None for _ in ctx.options))


class _GradInput(Function):

    @staticmethod
    def forward(ctx, grad: Tensor, w: Tensor, input_size: Tuple[int, int], *options) -> Tensor:
        ctx.save_for_backward(grad, w)
        ctx.options = options
        with torch._C._AutoDispatchBelowAutograd():
            return grad_input_op(grad, w, input_size, *options)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> Tuple:
        grad, w = ctx.saved_tensors
        grad_grad = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_grad = forward_op(cotangent, w, *ctx.options)
        if ctx.needs_input_grad[1]:
            grad_w = grad_weight_op(grad, cotangent, w.shape[1], *ctx.options)
        return (grad_grad, grad_w, None, *(None for _ in ctx.options))


class _GradWeight(Function):

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, groups: int, *options) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.options = options
        with torch._C._AutoDispatchBelowAutograd():
            return grad_weight_op(grad, x, groups, *options)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> Tuple:
        grad, x = ctx.saved_tensors
        grad_grad = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_grad = forward_op(x, cotangent, *ctx.options)
        if ctx.needs_input_grad[1]:
            grad_x = grad_input_op(grad, cotangent, x.shape[-2:], *ctx.options)
        return (grad_grad, grad_x, None, *(None for _ in ctx.options))


def autocast_dtype(device_type: str) -> torch.dtype:
    """The dtype that autocast computes in on a kind of device."""
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4
        return torch.get_autocast_dtype(device_type)
    return (torch.get_autocast_gpu_dtype() if device_type == 'cuda'
            else torch.get_autocast_cpu_dtype())


def _autocast(device_type: str):
    """Kernel that brings the operands to autocast's dtype; float64 is left alone."""

    def cast_and_call(x: Tensor, w: Tensor, *options) -> Tensor:
        if torch.float64 not in (x.dtype, w.dtype):
            dtype = autocast_dtype(device_type)
            x, w = x.to(dtype), w.to(dtype)
        with torch.autocast(device_type, enabled=False):
            return forward_op(x, w, *options)

    return cast_and_call


def register_fake(name: str, function) -> None:
    """Give the operator ``mmcontext::name`` its shape function."""
    if hasattr(torch.library, 'register_fake'):  # torch 2.4
        torch.library.register_fake(f'mmcontext::{name}', function, lib=LIBRARY)
    else:
        LIBRARY.impl(name, function, 'Meta')


for _name, _kernel, _fake, _function in (
        ('local_aggregation', _forward, _forward_fake, _Forward),
        ('local_aggregation_grad_input', _grad_input, _grad_input_fake, _GradInput),
        ('local_aggregation_grad_weight', _grad_weight, _grad_weight_fake, _GradWeight)):
    LIBRARY.impl(_name, _kernel, 'CompositeExplicitAutograd')
    LIBRARY.impl(_name, _function.apply, 'Autograd')
    register_fake(_name, _fake)
LIBRARY.impl('local_aggregation', _autocast('cpu'), 'AutocastCPU')
LIBRARY.impl('local_aggregation', _autocast('cuda'), 'AutocastCUDA')
