"""(b) Fused involution against kernels made by a convolution, forward and backward."""
import argparse
from typing import Callable, Dict, Tuple

import torch
import torch.nn.functional as F
from bench_ops import Shape
from torch import Tensor

from gpu.operators import SHAPES
from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops import fused_involution, local_aggregation

_TINY = [Shape('tiny', 1, 32, 2, 9, 9, 7)]


def operands(shape: Shape, device: str, dtype: torch.dtype,
             layout: str) -> Tuple[Tuple[Tensor, ...], Tensor]:
    """x, reduced features, weight, bias and scale as leaves; the gradient of the output."""
    memory = torch.channels_last if layout == 'nhwc' else torch.contiguous_format
    reduced, outs = shape.channels // 4, shape.groups * shape.kernel ** 2

    def tensor(*size: int) -> Tensor:
        value = torch.randn(size, device=device, dtype=dtype)
        return value.contiguous(memory_format=memory) if len(size) == 4 else value

    leaves = (tensor(shape.batch, shape.channels, shape.height, shape.width),
              tensor(shape.batch, reduced, *shape.output), tensor(outs, reduced) / 8,
              tensor(outs), tensor(shape.batch, shape.channels))
    return (tuple(leaf.requires_grad_() for leaf in leaves),
            tensor(shape.batch, shape.channels, *shape.output))


def fused(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, scale: Tensor,
          shape: Shape) -> Tensor:
    """With kernels that are never stored."""
    return fused_involution(x, r, weight, bias, shape.kernel, shape.stride, shape.kernel // 2,
                            scale=scale)


def plain(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, scale: Tensor,
          shape: Shape) -> Tensor:
    """The same with the kernels in memory."""
    w = F.conv2d(r, weight[:, :, None, None], bias).unflatten(1, (shape.groups, -1))
    return local_aggregation(x * scale[:, :, None, None], w, shape.kernel, shape.stride,
                             shape.kernel // 2)


def _figures(run: Callable, leaves: Tuple[Tensor, ...], grad: Tensor, shape: Shape,
             clocks: Device) -> Dict[str, float]:
    def both() -> Tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves, shape), leaves, grad)

    with torch.no_grad():
        forward = clocks.gpu_us(lambda: run(*leaves, shape))
    return dict(forward=round(forward, 1), both=round(clocks.gpu_us(both), 1),
                peak_mib=round(clocks.peak_mib(both), 1))


def main(record: Record, options: argparse.Namespace) -> None:
    """GPU microseconds and peak memory of both forms at CedNet-50's shapes."""
    clocks = Device(options.device)
    shapes = _TINY if options.dry_run else [s for s in SHAPES if s.kernel == 7]
    for dtype, layout in (('bfloat16', 'nhwc'), ('float32', 'nchw')):
        for shape in shapes:
            with record.attempt(f'fused, {shape.name}, {dtype} {layout}'):
                torch.manual_seed(0)
                values = operands(shape, options.device, getattr(torch, dtype), layout)
                with torch.no_grad():
                    a, b = (run(*values[0], shape).float() for run in (fused, plain))
                error = ((a - b).abs().max() / b.abs().max()).item()
                if not error <= (2e-2 if dtype == 'bfloat16' else 5e-3):
                    record.fail(f'fused, {shape.name}, {dtype} {layout}', f'error {error:.1e}')
                row = {name: _figures(run, *values, shape, clocks)
                       for name, run in (('fused', fused), ('plain', plain))}
                record.row('fused', shape=shape.name, dtype=dtype, layout=layout, **row)
