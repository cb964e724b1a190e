"""Geometries that cover every path of the CUDA kernels, and their float64 references."""
from typing import Dict, NamedTuple, Tuple

import torch
from torch import Tensor

from mmcontext.ops.local_aggregation.backends import Geometry
from mmcontext.ops.local_aggregation.reference import aggregate

FLOAT, DOUBLE, BF16, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16
# Half an ulp, relative to each result; then the error of sums of products, relative to the largest
# result.
ROUNDING = {FLOAT: 0, DOUBLE: 0, BF16: 2.0 ** -8, HALF: 2.0 ** -11}
SUMS = {FLOAT: 2e-6, DOUBLE: 1e-14, BF16: 2e-6, HALF: 2e-6}


class Case(NamedTuple):
    """One aggregation: x [batch, channels, rows, cols], w with `groups` kernels per pixel.

    ``maps`` and ``kernels`` are the layouts of x, y, their gradients, and of w and its gradient:
    'planar', 'pixel' (channels-last), 'expanded' (zero strides, gradient planar), 'chunk' (half
    of a larger tensor's channels), 'transposed'.
    """

    dtype: torch.dtype
    size: Tuple[int, int, int, int]
    groups: int
    kernel: Tuple[int, int]
    stride: Tuple[int, int] = (1, 1)
    padding: Tuple[int, int] = (0, 0)
    dilation: Tuple[int, int] = (1, 1)
    interleaved: bool = False
    maps: str = 'planar'
    kernels: str = 'planar'

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.kernel, self.stride, self.padding, self.dilation, self.interleaved)


def arranged(tensor: Tensor, layout: str) -> Tensor:
    """The same values in the given memory layout; [B, C, H, W] or [B, G, KK, H, W]."""
    if layout == 'expanded':
        return tensor[:1, ..., :1].expand_as(tensor)
    if layout == 'chunk':
        return torch.cat((tensor, tensor), 1).chunk(2, 1)[1]
    if layout == 'transposed':
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == 'pixel':
        flat = tensor.flatten(1, -3).to(memory_format=torch.channels_last)
        # A map with one pixel or one channel would keep its strides otherwise.
        pixels = flat.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return pixels.unflatten(1, tensor.shape[1:-2]) if tensor.dim() == 5 else pixels
    return tensor.contiguous()


def make(case: Case) -> Dict[str, Tensor]:
    """x, w, the gradient of y, and float64 references of y, gx, gw."""
    generator = torch.Generator().manual_seed(0)
    batch, channels = case.size[:2]
    out = case.geometry.output_size(*case.size[2:])
    shapes = {'x': case.size, 'gy': (batch, channels, *out),
              'w': (batch, case.groups, case.kernel[0] * case.kernel[1], *out)}
    data = {name: arranged(torch.randn(shape, generator=generator).to(case.dtype),
                           case.kernels if name == 'w' else case.maps)
            for name, shape in shapes.items()}
    x, w = (data[name].detach().double().requires_grad_() for name in 'xw')
    y = aggregate(x, w, case.geometry)
    data['y'] = y.detach()
    data['gx'], data['gw'] = torch.autograd.grad(y, (x, w), data['gy'].double())
    return data


def gradient_like(shape: Tuple[int, ...], case: Case, layout: str) -> Tensor:
    """NaN of the given shape, in the layout of the operator's outputs."""
    layout = layout if layout == 'pixel' else 'planar'
    return arranged(torch.full(shape, float('nan'), dtype=case.dtype), layout)


def tolerance(case: Case, reference: Tensor) -> Dict[str, float]:
    return {'rtol': ROUNDING[case.dtype],
            'atol': SUMS[case.dtype] * max(1.0, reference.abs().max().item())}
