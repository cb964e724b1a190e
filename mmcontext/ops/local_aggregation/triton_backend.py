"""Backend that launches the Triton kernels. Triton is imported at the first launch.

The launches allocate only their output, do not synchronise with the host and use no atomics: they
can be captured in a CUDA graph and are deterministic. The tile sizes below follow from the
register budget; they have not yet been timed on a GPU.
"""
import contextlib
import functools
import importlib.util
import os
from types import ModuleType
from typing import Optional, Tuple

import torch
from torch import Tensor

from mmcontext.ops.local_aggregation.backends import Geometry, empty_feature, empty_kernels

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Accumulators per program: 2048 are 16 registers for each of the 128 threads of 4 warps.
_TILE_ELEMENTS = 2048
_MAX_TILE_CHANNELS = 32
_MAX_TILE_POSITIONS = 256
# The fused kernel also holds the gathered inputs of 16 taps, so its tile is smaller.
_FUSED_TILE_POSITIONS = 32
_FUSED_TAPS = 16
_FUSED_MAX_GROUP_CHANNELS = 64


@functools.lru_cache(maxsize=None)
def _missing_triton() -> Optional[str]:
    """Why triton cannot be used at all, or None."""
    if importlib.util.find_spec('triton') is None:
        return 'the package triton is not installed'
    import triton
    if int(triton.__version__.split('.')[0]) < 3:
        return f'the kernels need triton 3.0 or later, found {triton.__version__}'
    return None


def interpreting() -> bool:
    """Whether Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernels, on any device."""
    return os.environ.get('TRITON_INTERPRET', '0') == '1'


@functools.lru_cache(maxsize=None)
def _kernels() -> ModuleType:
    from mmcontext.ops.local_aggregation import triton_kernels
    return triton_kernels


@functools.lru_cache(maxsize=None)
def _capability(device: torch.device) -> Tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def why_not(x: Tensor) -> Optional[str]:
    """Why no Triton kernel supports a tensor like ``x``, or None."""
    if x.dtype not in DTYPES:
        return f'the Triton kernels have no {x.dtype}'
    if not interpreting():
        if x.device.type != 'cuda':
            return f'the Triton kernels need a CUDA device, the tensors are on {x.device.type}'
        if torch.version.hip is None and _capability(x.device) < (7, 0):
            return 'the Triton kernels need compute capability 7.0 or later'
    return _missing_triton()


def _power_of_2(value: int) -> int:
    """The smallest power of two that is not below ``value``."""
    return 1 << max(value - 1, 0).bit_length()


def tile(group_channels: int, positions: int) -> Tuple[int, int]:
    """Channels and positions of one program's tile."""
    block_c = min(_power_of_2(group_channels), _MAX_TILE_CHANNELS)
    block_p = min(_TILE_ELEMENTS // block_c, _MAX_TILE_POSITIONS, _power_of_2(positions))
    return block_c, max(block_p, 16)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _spans_int32(*tensors: Tensor) -> bool:
    """Whether the elements of one image lie within 2^31 of each other in every tensor."""
    return all(
        sum((size - 1) * stride for size, stride in zip(t.shape[1:], t.stride()[1:])) < 2**31
        for t in tensors)


def _constants(geometry: Geometry, *tensors: Tensor) -> dict:
    """The compile-time arguments common to all kernels."""
    import triton.language as tl
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), interleaved = geometry
    return dict(KH=kh, KW=kw, SH=sh, SW=sw, PH=ph, PW=pw, DH=dh, DW=dw,
                INTERLEAVED=interleaved,
                IDX=tl.int32 if _spans_int32(*tensors) else tl.int64)


def _accumulator(x: Tensor):
    import triton.language as tl
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _on_device(x: Tensor):
    """Make the tensors' device current: that is where launches go."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


class TritonBackend:
    """Forward and both gradients on CUDA devices; float64 included, any strides."""

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        return why_not(x)

    def forward(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        batch, channels, height, width = x.shape
        groups, (out_h, out_w) = w.shape[1], w.shape[-2:]
        output = empty_feature(x, channels, out_h, out_w)
        if output.numel() == 0:
            return output
        block_c, block_p = tile(channels // groups, out_h * out_w)
        programs = (batch * groups * _ceil_div(channels // groups, block_c)
                    * _ceil_div(out_h * out_w, block_p))
        with _on_device(x):
            _kernels().forward_kernel[(programs, )](
                x, w, output, channels, groups, out_h * out_w, height, width, out_w,
                *x.stride(), *w.stride(), *output.stride(),
                **_constants(geometry, x, w, output), ACC=_accumulator(x),
                BLOCK_C=block_c, BLOCK_P=block_p)
        return output

    def grad_input(self, grad: Tensor, w: Tensor, input_size: Tuple[int, int],
                   geometry: Geometry) -> Tensor:
        batch, channels, out_h, out_w = grad.shape
        groups, (height, width) = w.shape[1], input_size
        output = empty_feature(grad, channels, height, width)
        if output.numel() == 0:
            return output
        stride_h, stride_w = geometry.stride
        class_h, class_w = _ceil_div(height, stride_h), _ceil_div(width, stride_w)
        block_c, block_p = tile(channels // groups, class_h * class_w)
        programs = (batch * groups * _ceil_div(channels // groups, block_c) * stride_h * stride_w
                    * _ceil_div(class_h * class_w, block_p))
        with _on_device(grad):
            _kernels().grad_input_kernel[(programs, )](
                grad, w, output, channels, groups, class_h * class_w, class_w, height, width,
                out_h, out_w, *grad.stride(), *w.stride(), *output.stride(),
                **_constants(geometry, grad, w, output), ACC=_accumulator(grad),
                BLOCK_C=block_c, BLOCK_P=block_p)
        return output

    def grad_weight(self, grad: Tensor, x: Tensor, groups: int, geometry: Geometry) -> Tensor:
        batch, channels, height, width = x.shape
        out_h, out_w = grad.shape[-2:]
        kernel_h, kernel_w = geometry.kernel_size
        output = empty_kernels(x, groups, kernel_h * kernel_w, out_h, out_w)
        if output.numel() == 0:
            return output
        block_c, block_p = tile(channels // groups, out_h * out_w)
        programs = batch * groups * _ceil_div(out_h * out_w, block_p)
        with _on_device(x):
            _kernels().grad_weight_kernel[(programs, )](
                grad, x, output, channels, groups, out_h * out_w, height, width, out_w,
                *grad.stride(), *x.stride(), *output.stride(),
                **_constants(geometry, grad, x, output), ACC=_accumulator(x),
                BLOCK_C=block_c, BLOCK_P=block_p, CHUNKS=_ceil_div(channels // groups, block_c))
        return output


def fused_refusal(x: Tensor, channels_per_group: int) -> Optional[str]:
    """Why the fused kernel does not support a feature map like ``x``, or None."""
    reason = why_not(x)
    if reason is None and x.dtype == torch.float64:
        reason = 'the fused Triton kernel has no float64'
    if reason is None and channels_per_group > _FUSED_MAX_GROUP_CHANNELS:
        reason = (f'the fused Triton kernel holds at most {_FUSED_MAX_GROUP_CHANNELS} channels '
                  f'of a group, got {channels_per_group}')
    return reason


def fused_forward(x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor],
                  scale: Optional[Tensor], geometry: Geometry) -> Tensor:
    """Aggregation of x with the kernels ``weight @ r + bias``, which are never stored.

    Args:
        x: [B, C, H, W].
        r: Reduced features [B, Cr, Ho, Wo].
        weight: [G * Kh * Kw, Cr]; G divides C.
        bias: [G * Kh * Kw] or None.
        scale: Factors for the channels of x, [B, C], or None.
        geometry: Geometry of the aggregation, not interleaved.

    Returns:
        [B, C, Ho, Wo].
    """
    import triton.language as tl
    batch, channels, height, width = x.shape
    reduced, (out_h, out_w) = r.shape[1], r.shape[-2:]
    groups = weight.shape[0] // (geometry.kernel_size[0] * geometry.kernel_size[1])
    output = empty_feature(x, channels, out_h, out_w)
    if output.numel() == 0:
        return output
    # The interpreter would multiply the bit patterns of bfloat16, so it is given float32.
    operand = tl.float32 if interpreting() else {
        torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(x.dtype, tl.float32)
    # A pointer has to be passed even if it is not read; bias and scale are read without strides.
    bias_or_any = weight if bias is None else bias.contiguous()
    scale_or_any = weight if scale is None else scale.contiguous()
    constants = _constants(geometry, x, r, output)
    del constants['INTERLEAVED']
    block_p = _FUSED_TILE_POSITIONS
    block_r = min(max(_power_of_2(reduced), 16), 64)
    with _on_device(x):
        _kernels().fused_forward_kernel[(batch * groups * _ceil_div(out_h * out_w, block_p), )](
            x, r, weight, bias_or_any, scale_or_any, output, channels, groups, reduced,
            out_h * out_w, height, width, out_w, *x.stride(), *r.stride(), *weight.stride(),
            *output.stride(),
            **constants, HAS_BIAS=bias is not None, HAS_SCALE=scale is not None, DOT=operand,
            BLOCK_C=_power_of_2(channels // groups), BLOCK_P=block_p, BLOCK_K=_FUSED_TAPS,
            BLOCK_R=block_r, R_BLOCKS=_ceil_div(reduced, block_r))
    return output
