"""The two ways to compute a convolution (cross-correlation), in plain torch."""
from contextlib import nullcontext
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.fft_conv.geometry import (
    ConvGeometry,
    IntOrTuple,
    Padding,
    conv_geometry,
    fft_size,
)
from mmcontext.ops.tracing import is_recording

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_FAST_PADDING = 6
_SHORT_ROW, _SHORT_ROW_DEPTHWISE = 13, 3


def fft_conv(x: Tensor,
             weight: Tensor,
             bias: Optional[Tensor] = None,
             stride: IntOrTuple = 1,
             padding: Padding = 0,
             dilation: IntOrTuple = 1,
             groups: int = 1) -> Tensor:
    """Convolution through the Fourier domain, for 1, 2 and 3 spatial axes.

    Same result as ``torch.nn.functional.conv{1,2,3}d`` (a cross-correlation). The cost hardly
    depends on the kernel size. A stride drops outputs afterwards, so it saves nothing.

    Args:
        x (Tensor): [B, C, *size].
        weight (Tensor): [O, C / groups, *kernel]; ``groups == C`` is the depth-wise case. Any
            kernel: rectangular, even, larger than ``x``.
        bias (Tensor, optional): [O].
        stride (int | Sequence[int]): Defaults to 1.
        padding (str | int | Sequence): Zeros around ``x``: an int, an int per axis, a
            (left, right) pair per axis, 'same', or 'causal' (all in front, on every axis).
            Defaults to 0.
        dilation (int | Sequence[int]): Defaults to 1.
        groups (int): Defaults to 1.

    Returns:
        Tensor: [B, O, *out] with the dtype of ``x``. float16 and bfloat16 are computed in
        float32, and float64 stays float64. Differentiable any number of times.

    Raises:
        ValueError: On shapes or numbers that do not match.
        TypeError: On complex or integer tensors.
    """
    geometry = conv_geometry(x, weight, bias, stride, padding, dilation, groups)
    return fft_conv_impl(x, weight, bias, geometry)


def direct_conv(x: Tensor,
                weight: Tensor,
                bias: Optional[Tensor] = None,
                stride: IntOrTuple = 1,
                padding: Padding = 0,
                dilation: IntOrTuple = 1,
                groups: int = 1) -> Tensor:
    """:func:`fft_conv` with torch's own convolution; see there for the arguments."""
    geometry = conv_geometry(x, weight, bias, stride, padding, dilation, groups)
    return direct_conv_impl(x, weight, bias, geometry)


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _no_autocast(device_type: str):
    """FFTs stay in float32: half precision has neither the range nor the kernels for them."""
    if device_type == 'meta':
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _dilate(weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """Insert the zeros of a dilated kernel."""
    if max(geometry.dilation) == 1:
        return weight
    dilated = weight.new_zeros(weight.shape[:2] + geometry.extent)
    taps = tuple([slice(None, None, d) for d in geometry.dilation])
    dilated[(slice(None), slice(None)) + taps] = weight
    return dilated


def _multiply_spectra(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """[B, C, *f] by [O, C / groups, *f], summed over the channels of a group."""
    if weight.shape[1] == 1:
        # One input channel per output: no sum, hence no matrix product.
        if weight.shape[0] != x.shape[1]:
            x = x.repeat_interleave(weight.shape[0] // groups, dim=1)
        return x * weight[:, 0]
    frequencies = x.shape[2:]
    x = x.unflatten(1, (groups, -1)).flatten(3)
    weight = weight.unflatten(0, (groups, -1)).flatten(3)
    return torch.einsum('bgif,goif->bgof', x, weight).flatten(1, 2).unflatten(2, frequencies)


def fft_conv_impl(x: Tensor, weight: Tensor, bias: Optional[Tensor],
                  geometry: ConvGeometry) -> Tensor:
    """:func:`fft_conv` on checked arguments."""
    if x.numel() == 0:
        # The FFT libraries do not support empty batches.
        return direct_conv_impl(x, weight, bias, geometry)
    dtype = _compute_dtype(x, weight)
    axes = tuple(range(2, x.dim()))
    size = fft_size(geometry)
    with _no_autocast(x.device.type):
        kernel = _dilate(weight.to(dtype), geometry)
        pad = []
        for length, extent in zip(reversed(size), reversed(geometry.extent)):
            pad += [0, length - extent]
        # Rolling the kernel by the left padding makes the first output land on index zero.
        kernel = torch.roll(F.pad(kernel, pad), [-left for left, _ in geometry.padding], axes)
        spectrum = _multiply_spectra(
            torch.fft.rfftn(x.to(dtype), s=size, dim=axes),
            torch.fft.rfftn(kernel, dim=axes).conj(), geometry.groups)
        out = torch.fft.irfftn(spectrum, s=size, dim=axes)
        keep = tuple([slice(0, n, s) for n, s in zip(geometry.full_out_size, geometry.stride)])
        out = out[(slice(None), slice(None)) + keep]
        if bias is not None:
            out = out + bias.to(dtype).view(-1, *[1] * len(axes))
        # A copy, since the slice is a view that would keep the whole transform alive.
        return out.to(x.dtype).contiguous()


def _pays_to_pad_first(x: Tensor, weight: Tensor, geometry: ConvGeometry) -> bool:
    # oneDNN leaves its fast kernels if a convolution itself pads rows by more than 6: those on a
    # padded map are up to 19 times as fast. Dilated short kernels over several channels stay fast.
    # Runtimes of exported graphs pad by themselves.
    return (x.device.type == 'cpu' and x.dim() < 5
            and geometry.padding[-1][0] > _FAST_PADDING
            and geometry.kernel[-1] > (_SHORT_ROW if weight.shape[1] > 1 else _SHORT_ROW_DEPTHWISE)
            and not is_recording())


def direct_conv_impl(x: Tensor, weight: Tensor, bias: Optional[Tensor],
                     geometry: ConvGeometry) -> Tensor:
    """:func:`direct_conv` on checked arguments."""
    if (all([left == right for left, right in geometry.padding])
            and not _pays_to_pad_first(x, weight, geometry)):
        padding = tuple([left for left, _ in geometry.padding])
    else:
        padding = 0
        x = F.pad(x, [n for pair in reversed(geometry.padding) for n in pair])
    # oneDNN, on processors with float16 arithmetic, never finishes generating the code of a
    # depth-wise kernel with many taps (torch 2.11).
    dtype = torch.float32 if x.dtype == torch.float16 and x.device.type == 'cpu' else x.dtype
    bias = None if bias is None else bias.to(dtype)
    return _CONV[x.dim() - 2](x.to(dtype), weight.to(dtype), bias, geometry.stride, padding,
                               geometry.dilation, geometry.groups).to(x.dtype)
