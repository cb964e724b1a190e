"""(e) 1x1 convolutions by cuDNN, and as matrix products of channels-last maps."""
import argparse
from typing import Dict, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.record import Record
from gpu.timing import Device
from gpu.ways import Way, compare_ways


class Geometry(NamedTuple):
    """A 1x1 convolution with stride 1."""
    channels: int
    outputs: int
    size: int


# From bottlenecks, from the kernel branches of involution and CoT, and a squeeze.
GEOMETRIES = [Geometry(*values) for values in (
    (64, 256, 56), (256, 64, 56), (512, 128, 28), (128, 512, 28), (1024, 256, 14),
    (256, 1024, 14), (2048, 512, 7), (512, 2048, 7), (64, 16, 56), (16, 196, 56), (128, 32, 28),
    (32, 392, 28), (64, 784, 14), (128, 1568, 7), (128, 64, 56), (64, 72, 56), (512, 64, 1))]
_TINY = [Geometry(8, 12, 5)]


def by_product(x: Tensor, weight: Tensor) -> Tensor:
    """A channels-last map as a matrix with one row per pixel."""
    pixels = x.permute(0, 2, 3, 1)
    return F.linear(pixels, weight[:, :, 0, 0]).permute(0, 3, 1, 2)


WAYS: Dict[str, Way] = {'conv2d': F.conv2d, 'linear': by_product}


def main(record: Record, options: argparse.Namespace) -> None:
    """GPU and host microseconds forward and forward + backward, batch 64, weights cast to bf16."""
    clocks = Device(options.device)
    batch = 2 if options.dry_run else 64
    for of in _TINY if options.dry_run else GEOMETRIES:
        torch.manual_seed(0)
        x = torch.randn(batch, of.channels, of.size, of.size, device=options.device,
                        dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        weight = torch.randn(of.outputs, of.channels, 1, 1, device=options.device,
                             dtype=torch.bfloat16)
        expected = F.conv2d(x.float(), weight.float())
        compare_ways(record, 'pointwise', of, WAYS, x, weight, expected,
                     {'gpu_': lambda step: clocks.gpu_us(step, 15),
                      'host_': lambda step: clocks.host_us(step, 15)})
