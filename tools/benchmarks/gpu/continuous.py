"""(e) CKResNet-50's depth-wise convolutions: by FFT, and directly in several ways."""
import argparse
from typing import Callable, Dict, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.record import Record
from gpu.timing import Device
from gpu.ways import compare_ways
from mmcontext.ops import direct_conv, explain_method, fft_conv, grouped_conv2d


class Geometry(NamedTuple):
    """A depth-wise convolution with padding that keeps the size at stride 1."""
    channels: int
    kernel: int
    stride: int
    size: int


# The stages at initialisation, and with kernels that have grown.
GEOMETRIES = [Geometry(*values) for values in (
    (64, 5, 1, 56), (128, 5, 2, 56), (128, 5, 1, 28), (256, 5, 1, 14), (512, 5, 1, 7),
    (64, 9, 1, 56), (64, 17, 1, 56), (64, 33, 1, 56), (256, 17, 1, 14))]
_TINY = [Geometry(8, 5, 2, 12)]

Way = Callable[[Tensor, Tensor, Geometry], Tensor]


def _layout_kept(x: Tensor, weight: Tensor, of: Geometry) -> Tensor:
    return F.conv2d(x, weight, None, of.stride, of.kernel // 2, 1, of.channels)


def _tensor_cores(x: Tensor, weight: Tensor, of: Geometry) -> Tensor:
    return grouped_conv2d(x, weight, None, of.stride, of.kernel // 2, 1, of.channels,
                          'direct' if x.is_cuda else 'auto')


WAYS: Dict[str, Way] = {
    'FFT': lambda x, weight, of: fft_conv(x, weight, None, of.stride, of.kernel // 2,
                                          groups=of.channels),
    'direct': lambda x, weight, of: direct_conv(x, weight, None, of.stride, of.kernel // 2,
                                                groups=of.channels),
    'direct, NHWC': _layout_kept,
    'kernels of narrow groups, NHWC': _tensor_cores,
}


def main(record: Record, options: argparse.Namespace) -> None:
    """GPU microseconds forward and forward + backward of channels-last maps, batch 64, bf16."""
    clocks = Device(options.device)
    batch = 2 if options.dry_run else 64
    for of in _TINY if options.dry_run else GEOMETRIES:
        torch.manual_seed(0)
        x = torch.randn(batch, of.channels, of.size, of.size, device=options.device,
                        dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        weight = torch.randn(of.channels, 1, of.kernel, of.kernel, device=options.device,
                             dtype=x.dtype)
        expected = _layout_kept(x.float(), weight.float(), of)
        chosen = explain_method(x.requires_grad_(), weight, of.stride, of.kernel // 2,
                                groups=of.channels)['chosen']
        ways = {name: lambda x, weight, way=way: way(x, weight, of) for name, way in WAYS.items()
                if way is not _tensor_cores or of.kernel <= 9}
        compare_ways(record, 'continuous', of, ways, x, weight, expected,
                     {'': lambda step: clocks.gpu_us(step, 10)}, auto_chooses=chosen)
