"""Aggregation whose kernels are computed on the fly and never stored.

Involution and C-volution make their kernels w by a 1x1 convolution of reduced features r, and
read them once. w has K*K/16 times as many elements as the feature map (49/16 for K = 7), so
writing, reading and keeping it for the backward pass is most of the layer's memory traffic.
Here w is computed for a few images, kernel groups or output rows at a time in a small buffer that
stays in cache, and used right away; the backward pass recomputes it. The sums and their order are
the same as without fusing, except that gradients are summed chunk by chunk.
"""
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from mmcontext.ops.arguments import IntPair, remembered
from mmcontext.ops.local_aggregation.backends import (
    Geometry,
    accumulation_dtype,
    choose,
    empty_feature,
    requested_backend,
)
from mmcontext.ops.local_aggregation.chunks import ChunkedKernels
from mmcontext.ops.local_aggregation.frontend import (
    check_floating_point,
    checked_output_size,
    local_aggregation,
    make_geometry,
    standard_operators_wanted,
)
from mmcontext.ops.local_aggregation.operators import (
    LIBRARY,
    autocast_kernel,
    register_fake,
)

_GEOMETRY = 'int[] kernel_size, int[] stride, int[] padding, int[] dilation, str backend'
_OPERANDS = 'Tensor x, Tensor r, Tensor weight, Tensor? bias, Tensor? scale'
LIBRARY.define(f'fused_involution({_OPERANDS}, {_GEOMETRY}) -> Tensor')
LIBRARY.define(f'fused_involution_backward(Tensor grad, {_OPERANDS}, {_GEOMETRY}) '
               '-> (Tensor, Tensor, Tensor, Tensor, Tensor)')
_forward_op = torch.ops.mmcontext.fused_involution.default
_backward_op = torch.ops.mmcontext.fused_involution_backward.default


def _geometry(kernel_size: List[int], stride: List[int], padding: List[int],
              dilation: List[int]) -> Geometry:
    return Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), False)


def _check_dtypes(x: Tensor, **others: Optional[Tensor]) -> None:
    for name, other in others.items():
        if other is None:
            continue
        if other.dtype != x.dtype:
            raise TypeError(f'{name} must have the dtype {x.dtype} of x outside autocast, got '
                            f'{other.dtype}')
        if other.device != x.device:
            raise ValueError(f'{name} must be on the device {x.device} of x, got {other.device}')


def _forward(x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor],
             scale: Optional[Tensor], kernel_size: List[int], stride: List[int],
             padding: List[int], dilation: List[int], backend: str) -> Tensor:
    _check_dtypes(x, r=r, weight=weight, bias=bias, scale=scale)
    geometry = _geometry(kernel_size, stride, padding, dilation)
    work = ChunkedKernels(x, r, weight, bias, scale, geometry)
    name, implementation = choose(x, r, geometry, backend)
    if name == 'triton':
        from mmcontext.ops.local_aggregation import triton_backend
        if triton_backend.fused_refusal(x, work.shared) is None:
            return triton_backend.fused_forward(x, r, weight, bias, scale, geometry)
    output = empty_feature(x, x.shape[1], *r.shape[-2:])
    for chunk in work.chunks():
        source, part_geometry, _, _ = work.source(chunk)
        output[chunk.images, work.channels(chunk), chunk.rows] = implementation.forward(
            source, work.kernels(chunk), part_geometry)
    return output


def _empty_grads(x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor],
                 scale: Optional[Tensor]) -> Tuple[Tensor, ...]:
    """Tensors for the gradients; empty ones for operands that are None."""
    return (empty_feature(x, *x.shape[1:]), empty_feature(r, *r.shape[1:]),
            *(x.new_empty(0 if like is None else like.shape) for like in (weight, bias, scale)))


def _backward(grad: Tensor, x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor],
              scale: Optional[Tensor], kernel_size: List[int], stride: List[int],
              padding: List[int], dilation: List[int],
              backend: str) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    geometry = _geometry(kernel_size, stride, padding, dilation)
    work = ChunkedKernels(x, r, weight, bias, scale, geometry)
    _, implementation = choose(x, r, geometry, backend)
    grad_x, grad_r, *grad_others = _empty_grads(x, r, weight, bias, scale)
    # Sums over the chunks, in at least float32.
    wide = accumulation_dtype(x.dtype)
    sum_weight, sum_bias, sum_scale = (
        torch.zeros_like(other, dtype=wide, memory_format=torch.contiguous_format)
        for other in grad_others)
    grad_x.zero_()
    grad_r.zero_()
    for chunk in work.chunks():
        source, part_geometry, rows, above = work.source(chunk)
        channels, outs = work.channels(chunk), work.outs(chunk)
        part_grad = grad[chunk.images, channels, chunk.rows]
        part_groups = chunk.groups.stop - chunk.groups.start
        kernels = work.kernels(chunk)
        grad_source = implementation.grad_input(part_grad, kernels, tuple(source.shape[-2:]),
                                                part_geometry)
        grad_source = grad_source[:, :, above:above + max(0, rows.stop - rows.start)]
        part_x = x[chunk.images, channels, rows]
        if scale is not None:
            sum_scale[chunk.images, channels] += torch.sum(
                part_x * grad_source, dim=(2, 3), dtype=wide)
            grad_source = grad_source * scale[chunk.images, channels, None, None]
        grad_x[chunk.images, channels, rows] += grad_source

        grad_kernels = implementation.grad_weight(part_grad, source, part_groups, part_geometry)
        grad_kernels = grad_kernels.flatten(1, 2)
        if bias is not None:
            sum_bias[outs] += torch.sum(grad_kernels, dim=(0, 2, 3), dtype=wide)
        reduced, part_weight = work.reduced(chunk), weight[outs]
        images, pixels = reduced.shape[0], reduced.shape[2]
        if work.channels_last:
            flat = grad_kernels.permute(0, 2, 3, 1).reshape(images * pixels, -1)
            sum_weight[outs] += flat.t() @ reduced.transpose(1, 2).reshape(images * pixels, -1)
            grad_reduced = (flat @ part_weight).view(
                images, -1, r.shape[-1], r.shape[1]).permute(0, 3, 1, 2)
        else:
            flat = grad_kernels.flatten(2)
            sum_weight[outs] += torch.sum(flat @ reduced.transpose(1, 2), dim=0, dtype=wide)
            grad_reduced = (part_weight.t() @ flat).view(images, r.shape[1], -1, r.shape[-1])
        grad_r[chunk.images, :, chunk.rows] += grad_reduced
    for total, out in zip((sum_weight, sum_bias, sum_scale), grad_others):
        out.copy_(total)
    return (grad_x, grad_r, *grad_others)


def _unfused(x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor],
             scale: Optional[Tensor], geometry: Geometry, backend: str) -> Tensor:
    """The same result from operators that autograd can follow to any order."""
    *sizes, interleaved = geometry
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    kernels = F.conv2d(r, weight[:, :, None, None], bias)
    # (Not unflatten, after which the ONNX exporter makes all sizes constants.)
    kernels = kernels.view(kernels.shape[0], weight.shape[0] // taps, taps, kernels.shape[2],
                           kernels.shape[3])
    if scale is not None:
        x = x * scale[:, :, None, None]
    return local_aggregation(x, kernels, *sizes, backend=backend or None)


class _FusedInvolution(Function):

    @staticmethod
    def forward(ctx, x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor],
                scale: Optional[Tensor], *options) -> Tensor:
        ctx.save_for_backward(x, r, weight, bias, scale)
        ctx.options = options
        with torch._C._AutoDispatchBelowAutograd():
            return _forward_op(x, r, weight, bias, scale, *options)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple:
        operands = ctx.saved_tensors
        wanted = [need and operand is not None
                  for need, operand in zip(ctx.needs_input_grad, operands)]
        if torch.is_grad_enabled():
            # This gradient will be differentiated. r and scale are computed from x, so the graph
            # must end at the operands and not reach back to what they were computed from.
            *sizes, backend = ctx.options
            leaves = [None if t is None else t.view_as(t) for t in operands]
            output = _unfused(*leaves, _geometry(*sizes), backend)
            found = iter(torch.autograd.grad(
                output, [leaf for leaf, want in zip(leaves, wanted) if want], grad,
                create_graph=True))
            grads = [next(found) if want else None for want in wanted]
        else:
            grads = _backward_op(grad, *operands, *ctx.options)
            grads = [g if want else None for g, want in zip(grads, wanted)]
        return (*grads, *(None for _ in ctx.options))


def _forward_fake(x, r, weight, bias, scale, *geometry_and_backend):
    _check_dtypes(x, r=r, weight=weight, bias=bias, scale=scale)
    return empty_feature(x, x.shape[1], *r.shape[-2:])


def _backward_fake(grad, *operands_and_geometry):
    return _empty_grads(*operands_and_geometry[:5])


LIBRARY.impl('fused_involution', _forward, 'CompositeExplicitAutograd')
LIBRARY.impl('fused_involution', _FusedInvolution.apply, 'Autograd')
LIBRARY.impl('fused_involution', autocast_kernel(_forward_op, 5, 'cpu'), 'AutocastCPU')
LIBRARY.impl('fused_involution', autocast_kernel(_forward_op, 5, 'cuda'), 'AutocastCUDA')
LIBRARY.impl('fused_involution_backward', _backward, 'CompositeExplicitAutograd')
register_fake('fused_involution', _forward_fake)
register_fake('fused_involution_backward', _backward_fake)


@remembered
def _check_shapes(x: Tuple[int, ...], r: Tuple[int, ...], weight: Tuple[int, ...],
                  bias: Optional[Tuple[int, ...]], scale: Optional[Tuple[int, ...]],
                  *geometry_arguments) -> Geometry:
    geometry = make_geometry(*geometry_arguments, 'block')
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    expected = (x[0], *checked_output_size(x, geometry))
    if len(r) != 4:
        raise ValueError(f'r must be [B, Cr, Ho, Wo], got shape {tuple(r)}')
    if (r[0], *r[-2:]) != expected:
        raise ValueError(f'r must have the batch, height and width {expected} for x of shape '
                         f'{tuple(x)} and {geometry}, got shape {tuple(r)}')
    outs = weight[0] if len(weight) == 2 else 0
    if outs < 1 or outs % taps or weight[1] != r[1]:
        raise ValueError(f'weight must be [G * {taps}, {r[1]}], got shape {tuple(weight)}')
    if x[1] % (outs // taps):
        raise ValueError(f'the {x[1]} channels of x are not divisible by the {outs // taps} '
                         'groups of weight')
    if bias is not None and tuple(bias) != (outs, ):
        raise ValueError(f'bias must have shape ({outs},), got {tuple(bias)}')
    if scale is not None and tuple(scale) != tuple(x[:2]):
        raise ValueError(f'scale must have shape {tuple(x[:2])}, got {tuple(scale)}')
    return geometry


def fused_involution(x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor] = None,
                     kernel_size: IntPair = 7, stride: IntPair = 1, padding: IntPair = 0,
                     dilation: IntPair = 1, scale: Optional[Tensor] = None,
                     backend: Optional[str] = None) -> Tensor:
    """:func:`local_aggregation` with kernels ``weight @ r + bias`` that are never stored.

    Equals ``local_aggregation(x * scale, conv2d(r, weight, bias), ...)`` with kernels shared in
    blocks of channels, and saves the memory of the kernels, of their gradient and of
    ``x * scale``: the kernels exist a few megabytes at a time and are recomputed in the backward
    pass. Second derivatives run unfused.

    Args:
        x: Feature map [B, C, H, W].
        r: Reduced features [B, Cr, Ho, Wo], one vector for each output pixel.
        weight: [G * Kh * Kw, Cr]; G divides C.
        bias: [G * Kh * Kw], or None.
        kernel_size: Kernel height and width. Defaults to 7.
        stride: Step between the centres of two output pixels, in input pixels.
        padding: Zero rows and columns added on each side.
        dilation: Distance between two taps, in input pixels.
        scale: Factor for every channel [B, C] (the gate of C-volution), or None.
        backend: As :func:`local_aggregation`.

    Returns:
        [B, C, Ho, Wo] in x's dtype and memory layout. Under autocast all operands are cast to
        autocast's dtype. In low precision the kernels of the Triton backend are not rounded to
        that precision in the forward pass; those of the other backends are.

    Raises:
        ValueError: Shapes, devices or geometry do not match.
        TypeError: x is not floating-point, or the dtypes differ outside autocast.
        RuntimeError: The requested backend does not support these tensors.
    """
    check_floating_point(x)
    shapes = (None if t is None else t.shape for t in (x, r, weight, bias, scale))
    geometry = _check_shapes(*shapes, kernel_size, stride, padding, dilation)
    backend = requested_backend(backend)
    if standard_operators_wanted(backend):
        return _unfused(x, r, weight, bias, scale, geometry, backend)
    *sizes, _ = geometry
    return _forward_op(x, r, weight, bias, scale, *sizes, backend)
