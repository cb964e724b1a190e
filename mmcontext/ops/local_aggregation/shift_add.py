"""Backend in torch operators that holds at most one shifted copy at a time: one pass per tap."""
from typing import Iterator, Tuple

import torch
from torch import Tensor

from mmcontext.ops.local_aggregation.backends import (
    Geometry,
    accumulation_dtype,
    empty_feature,
    empty_kernels,
)


def _range(size: int, out_size: int, offset: int, stride: int) -> Tuple[slice, slice]:
    """Output positions o whose input position stride * o + offset lies inside; the latter too."""
    first = max(0, -(offset // stride))
    last = min(out_size - 1, (size - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last + 1), slice(first * stride + offset, last * stride + offset + 1,
                                         stride)


def _taps(input_size: Tuple[int, int], output_size: Tuple[int, int],
          geometry: Geometry) -> Iterator[Tuple[int, tuple, tuple]]:
    """Per tap: its index, and the output and input regions that it joins."""
    ranges = [
        [_range(size, out_size, dil * k - pad, step) for k in range(kernel)]
        for size, out_size, kernel, step, pad, dil in zip(
            input_size, output_size, geometry.kernel_size, geometry.stride, geometry.padding,
            geometry.dilation)
    ]
    for i, (out_rows, in_rows) in enumerate(ranges[0]):
        for j, (out_cols, in_cols) in enumerate(ranges[1]):
            yield (i * geometry.kernel_size[1] + j, (..., out_rows, out_cols),
                   (..., in_rows, in_cols))


def _by_group(x: Tensor, groups: int, interleaved: bool) -> Tensor:
    """[B, C, H, W] -> [B, G, C/G, H, W], or [B, C/G, G, H, W] if interleaved; a view."""
    shared = x.shape[1] // groups
    return x.unflatten(1, (shared, groups) if interleaved else (groups, shared))


class ShiftAddBackend:
    """Shift-and-add over the taps, with gradients of the same form."""

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> None:
        return None

    def forward(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        output = empty_feature(x, x.shape[1], *w.shape[-2:], accumulation_dtype(x.dtype)).zero_()
        target = _by_group(output, w.shape[1], geometry.interleaved)
        source = _by_group(x, w.shape[1], geometry.interleaved)
        kernels = w.unsqueeze(1 if geometry.interleaved else 2)
        for tap, out_region, in_region in _taps(x.shape[-2:], w.shape[-2:], geometry):
            target[out_region].addcmul_(source[in_region], kernels[:, :, :, tap][out_region])
        return output.to(x.dtype)

    def grad_input(self, grad: Tensor, w: Tensor, input_size: Tuple[int, int],
                   geometry: Geometry) -> Tensor:
        output = empty_feature(grad, grad.shape[1], *input_size,
                               accumulation_dtype(grad.dtype)).zero_()
        target = _by_group(output, w.shape[1], geometry.interleaved)
        source = _by_group(grad, w.shape[1], geometry.interleaved)
        kernels = w.unsqueeze(1 if geometry.interleaved else 2)
        for tap, out_region, in_region in _taps(input_size, w.shape[-2:], geometry):
            target[in_region].addcmul_(source[out_region], kernels[:, :, :, tap][out_region])
        return output.to(grad.dtype)

    def grad_weight(self, grad: Tensor, x: Tensor, groups: int, geometry: Geometry) -> Tensor:
        taps = geometry.kernel_size[0] * geometry.kernel_size[1]
        output = empty_kernels(x, groups, taps, *grad.shape[-2:]).zero_()
        source = _by_group(x, groups, geometry.interleaved)
        upstream = _by_group(grad, groups, geometry.interleaved)
        shared_dim = 1 if geometry.interleaved else 2
        dtype = accumulation_dtype(x.dtype)
        for tap, out_region, in_region in _taps(x.shape[-2:], grad.shape[-2:], geometry):
            product = source[in_region] * upstream[out_region]
            output[:, :, tap][out_region] = torch.sum(product, dim=shared_dim, dtype=dtype)
        return output
