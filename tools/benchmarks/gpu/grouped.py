"""(e) Grouped convolutions of the pyramids and of CoTNeXt, by cuDNN and by ways around it."""
import argparse
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcontext.ops
from gpu.record import Record
from gpu.timing import Device

_DTYPES = ('bfloat16', 'float16')


class Geometry(NamedTuple):
    """A convolution with padding that keeps the size at stride 1."""
    channels: int
    outputs: int
    kernel: int
    groups: int
    stride: int
    size: int


GEOMETRIES = [Geometry(*values) for values in (
    (128, 32, 9, 32, 1, 56), (64, 16, 9, 16, 1, 56), (128, 32, 3, 32, 1, 56),
    (96, 96, 3, 8, 1, 56), (192, 48, 1, 2, 1, 56), (64, 64, 3, 4, 1, 56), (64, 16, 7, 8, 1, 56),
    (64, 16, 5, 4, 1, 56), (128, 64, 7, 8, 1, 28), (256, 128, 5, 4, 1, 14),
    (128, 32, 7, 32, 1, 56), (128, 32, 5, 32, 1, 56), (128, 32, 9, 32, 2, 112),
    (256, 64, 5, 64, 1, 28), (512, 256, 5, 64, 1, 14), (48, 108, 1, 2, 1, 56))]
_TINY = [Geometry(16, 8, 3, 4, 2, 8), Geometry(8, 12, 1, 2, 1, 6)]

Convolution = Callable[[Tensor, Tensor, Geometry], Tensor]


def plain(x: Tensor, weight: Tensor, of: Geometry) -> Tensor:
    """Torch's own."""
    return F.conv2d(x, weight, None, of.stride, of.kernel // 2, 1, of.groups)


def dense_weight(weight: Tensor, groups: int) -> Tensor:
    """The weight of one group, zero where an output does not see a channel."""
    outputs, shared, *kernel = weight.shape
    own = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    own = own.view(groups, 1, groups, 1, *(1 for _ in kernel))
    blocks = weight.view(groups, outputs // groups, 1, shared, *kernel)
    return (blocks * own).reshape(outputs, groups * shared, *kernel)


def dense(x: Tensor, weight: Tensor, of: Geometry) -> Tensor:
    """One group whose weight has zeros, made in every call."""
    return F.conv2d(x, dense_weight(weight, of.groups), None, of.stride, of.kernel // 2)


def products(x: Tensor, weight: Tensor, of: Geometry) -> Tensor:
    """A 1x1 convolution as matrix products, one a group, on pixels."""
    batch, _, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, of.groups, of.channels // of.groups)
    matrices = weight.view(of.groups, of.outputs // of.groups, -1)
    result = torch.bmm(pixels.transpose(0, 1), matrices.transpose(1, 2)).transpose(0, 1)
    return result.reshape(batch, height, width, of.outputs).permute(0, 3, 1, 2)


def ours(x: Tensor, weight: Tensor, of: Geometry) -> Tensor:
    """What the library chooses."""
    return mmcontext.ops.grouped_conv2d(x, weight, None, of.stride, of.kernel // 2,
                                        groups=of.groups)


def ways(of: Geometry) -> Dict[str, Tuple[Convolution, str, bool]]:
    """Name to function, layout and cuDNN's benchmark mode."""
    table = {'grouped, NHWC': (plain, 'nhwc', False), 'grouped, NCHW': (plain, 'nchw', False),
             'grouped, NCHW, benchmark': (plain, 'nchw', True), 'dense, NHWC': (dense, 'nhwc',
                                                                               False)}
    if of.kernel == 1 and of.stride == 1:
        table['matrix products, NHWC'] = (products, 'nhwc', False)
    if hasattr(mmcontext.ops, 'grouped_conv2d'):
        table['mmcontext, NHWC'] = (ours, 'nhwc', False)
    return table


def _steps(way: Convolution, x: Tensor, weight: Tensor,
           of: Geometry) -> Dict[str, Callable[[], object]]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    grad = torch.randn_like(way(x, weight, of))

    def forward() -> Tensor:
        with torch.no_grad():
            return way(x, weight, of)

    return {'forward': forward,
            'both': lambda: torch.autograd.grad(way(x, weight, of), (x, weight), grad)}


def _wrong(way: Convolution, x: Tensor, weight: Tensor, of: Geometry) -> Optional[str]:
    expected = plain(x[:1].float(), weight.float(), of)
    error = ((way(x[:1], weight, of) - expected).abs().max() / expected.abs().max()).item()
    return None if error <= 2e-2 else f'error {error:.1e}'


def main(record: Record, options: argparse.Namespace) -> None:
    """GPU microseconds forward and forward + backward, batch 64, half precision."""
    clocks = Device(options.device)
    batch = 2 if options.dry_run else 64
    for dtype in _DTYPES[:1 if options.dry_run else None]:
        for of in _TINY if options.dry_run else GEOMETRIES:
            for name, (way, layout, benchmark) in ways(of).items():
                with record.attempt(f'{name}, {tuple(of)}, {dtype}'):
                    torch.manual_seed(0)
                    torch.backends.cudnn.benchmark = benchmark
                    memory = (torch.channels_last if layout == 'nhwc'
                              else torch.contiguous_format)
                    x = torch.randn(batch, of.channels, of.size, of.size, device=options.device,
                                    dtype=getattr(torch, dtype)).contiguous(memory_format=memory)
                    weight = torch.randn(of.outputs, of.channels // of.groups, of.kernel,
                                         of.kernel, device=options.device, dtype=x.dtype)
                    weight = weight.contiguous(memory_format=memory)
                    reason = _wrong(way, x, weight, of)
                    if reason:
                        record.fail(f'{name}, {tuple(of)}, {dtype}', reason)
                        continue
                    times = {mode: round(clocks.gpu_us(step, 10), 1)
                             for mode, step in _steps(way, x, weight, of).items()}
                    record.row('grouped', way=name, dtype=dtype, geometry=tuple(of), **times)
