"""Derivatives and autocast of the registered operators without the compiled library.

The counterpart of ``csrc/operators.cpp``, covered by the same tests. The aggregation is bilinear
in the feature map and the kernels, so it and its two gradients are closed under differentiation:
the derivatives of each are the other two, and derivatives of any order follow.
"""
from typing import Callable, Tuple

import torch
from torch import Tensor
from torch.autograd import Function

from mmcontext.ops.local_aggregation.operators import (
    autocast_kernel,
    forward_op,
    grad_input_op,
    grad_weight_op,
)


def _differentiable(op: Callable, gradients: Callable) -> Callable:
    """The operator ``op(a, b, *options)`` with its derivatives.

    Args:
        gradients: (cotangent, a, b, geometry) -> functions that compute the gradients of a and
            of b.
    """

    class Differentiable(Function):

        @staticmethod
        def forward(ctx, a: Tensor, b: Tensor, *options) -> Tensor:
            ctx.save_for_backward(a, b)
            ctx.options = options
            with torch._C._AutoDispatchBelowAutograd():
                return op(a, b, *options)

        @staticmethod
        def backward(ctx, cotangent: Tensor) -> Tuple:
            makers = gradients(cotangent, *ctx.saved_tensors, ctx.options[-6:])
            return (*(make() if wanted else None
                      for make, wanted in zip(makers, ctx.needs_input_grad)),
                    *(None for _ in ctx.options))

    return Differentiable.apply


def _forward_gradients(g: Tensor, x: Tensor, w: Tensor, geometry: Tuple) -> Tuple:
    return (lambda: grad_input_op(g, w, x.shape[-2:], *geometry),
            lambda: grad_weight_op(g, x, w.shape[1], *geometry))


def _grad_input_gradients(g: Tensor, grad: Tensor, w: Tensor, geometry: Tuple) -> Tuple:
    return (lambda: forward_op(g, w, *geometry),
            lambda: grad_weight_op(grad, g, w.shape[1], *geometry))


def _grad_weight_gradients(g: Tensor, grad: Tensor, x: Tensor, geometry: Tuple) -> Tuple:
    return (lambda: forward_op(x, g, *geometry),
            lambda: grad_input_op(grad, g, x.shape[-2:], *geometry))


def register(library: torch.library.Library) -> None:
    """Give the operators their derivatives and autocast."""
    for name, op, gradients in (
            ('local_aggregation', forward_op, _forward_gradients),
            ('local_aggregation_grad_input', grad_input_op, _grad_input_gradients),
            ('local_aggregation_grad_weight', grad_weight_op, _grad_weight_gradients)):
        library.impl(name, _differentiable(op, gradients), 'Autograd')
    library.impl('local_aggregation', autocast_kernel(forward_op, 2, 'cpu'), 'AutocastCPU')
    library.impl('local_aggregation', autocast_kernel(forward_op, 2, 'cuda'), 'AutocastCUDA')
