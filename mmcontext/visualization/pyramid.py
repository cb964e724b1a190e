"""The responses of the levels of CoConv and PyConv."""
from typing import List, NamedTuple

import torch
from torch import Tensor

from mmcontext.layers._pyramid import PyramidConv2d

KINDS = (PyramidConv2d, )


class Level(NamedTuple):
    """One level of a pyramid.

    Attributes:
        kernel_size (tuple): Kernel size of its convolution.
        dilation (tuple): Dilation of its convolution.
        response (Tensor): Mean over its channels of the magnitude of its output, [Ho, Wo].
        frequency (float): Mean spatial frequency of the output in cycles per pixel of the feature
            map, weighted by power, without its mean: low for smooth responses, up to 0.7 for the
            finest ones.
    """
    kernel_size: tuple
    dilation: tuple
    response: Tensor
    frequency: float


def mean_frequency(y: Tensor) -> float:
    """Mean spatial frequency of maps [C, H, W] in cycles per pixel, weighted by power."""
    height, width = y.shape[-2:]
    power = torch.fft.fft2(y - y.mean(dim=(-2, -1), keepdim=True)).abs().square().sum(0)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None].to(y), torch.fft.fftfreq(width).to(y))
    return float((power * radius).sum() / power.sum().clamp(min=1e-30))


@torch.no_grad()
def levels(layer: PyramidConv2d, x: Tensor) -> List[Level]:
    """The responses of a layer's levels.

    Args:
        layer: :class:`CoConv2d` or :class:`PyConv2d`.
        x: Its input, [1, in_channels, H, W].
    """
    found = []
    for conv in layer.convs:
        y = conv(x)[0]
        found.append(Level(conv.kernel_size, conv.dilation, y.abs().mean(0), mean_frequency(y)))
    return found
