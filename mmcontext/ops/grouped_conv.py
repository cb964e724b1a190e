"""Convolutions with many narrow groups, for which cuDNN has only slow kernels.

In half precision and channels-last, cuDNN runs grouped convolutions with kernels that do not use
tensor cores. There are two ways around that on NVIDIA GPUs: 'direct', our own tensor-core kernels
for narrow groups (``csrc/cuda/grouped.cuh``), and 'dense', the same convolution with one group
and a block-diagonal weight: up to 64 times the arithmetic in a fifth to a twelfth of cuDNN's
grouped time. The fastest is estimated from operation counts (tools/benchmarks/gpu_networks.md).
"""
import functools
from typing import Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.choice import Explanation, cannot_serve, explanation, requested
from mmcontext.ops.layout import lies_by_pixel
from mmcontext.ops.local_aggregation.operators import (
    LIBRARY,
    autocast_dtype,
    is_autocast,
    register_fake,
)
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.tracing import eager_refusal, is_compiling, is_exporting

METHOD_VARIABLE = 'MMCONTEXT_GROUPED_CONV'
_WAYS = ('library', 'grouped', 'dense', 'direct', 'null')
_HALF = (torch.float16, torch.bfloat16)
_Pair = Union[int, str, Sequence[int]]

LIBRARY.define('grouped_conv_direct(Tensor x, Tensor weight, Tensor? bias, int stride, '
               'int groups, str method) -> Tensor')
LIBRARY.define('grouped_pyramid(Tensor x, Tensor[] weights, int stride, int[] paddings, '
               'int[] dilations, int[] groups, int[] direct, str method) -> Tensor')
_direct = torch.ops.mmcontext.grouped_conv_direct.default
_pyramid = torch.ops.mmcontext.grouped_pyramid.default


def _standard(x, weight, bias, stride, groups, method):
    return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, 1, groups)


def _standard_pyramid(x, weights, stride, paddings, dilations, groups, direct, method):
    return torch.cat([F.conv2d(x, weight, None, stride, *geometry)
                      for weight, *geometry in zip(weights, paddings, dilations, groups)], 1)


for _name, _function in (('grouped_conv_direct', _standard),
                         ('grouped_pyramid', _standard_pyramid)):
    register_fake(_name, _function)
    if UNAVAILABLE:
        LIBRARY.impl(_name, _function, 'CompositeImplicitAutograd')


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype that the convolution runs in."""
    kind = 'cuda' if x.is_cuda else 'cpu'
    if is_autocast(kind) and x.dtype.is_floating_point:
        return autocast_dtype(kind)
    return x.dtype


def _refusal(x: Tensor, weight: Tensor, groups: int) -> Optional[str]:
    """Why neither way pays, or None."""
    if groups == 1:
        return 'there is one group'
    if not x.is_cuda or torch.version.hip:
        return f'it was measured on NVIDIA GPUs, x is on {x.device}'
    if weight.shape[0] == groups and weight.shape[1] == 1:
        return 'cuDNN has kernels for depth-wise convolutions'
    if is_exporting():
        return 'a graph for another runtime is being recorded'
    if _dtype(x) not in _HALF:
        return f'it pays in half precision, the convolution runs in {_dtype(x)}'
    if not lies_by_pixel(x):
        return 'it pays for channels-last maps'
    return None


def _unable(x: Tensor) -> Optional[str]:
    """Why our own operators must not be called now, or None."""
    reason = UNAVAILABLE or eager_refusal()
    if reason:
        return reason
    return _refusal_of_gpu(x.device.index) if x.is_cuda else None


@functools.lru_cache(maxsize=None)
def _refusal_of_groups(weight: Tuple[int, ...], stride: _Pair, padding: _Pair, dilation: _Pair,
                       groups: int) -> str:
    """Why the kernels do not support a geometry; empty if they do."""
    outputs, group_channels, *kernel = weight
    strides, dilations = _pair(stride), _pair(dilation)
    if kernel[0] != kernel[1] or strides[0] != strides[1]:
        return f'it has square kernels and strides, not {tuple(kernel)} and {strides}'
    same = kernel[0] // 2
    if dilations != (1, 1) or padding != 'same' and _pair(padding) != (same, same):
        return (f'it has dilation 1 and padding {same} for a kernel of {kernel[0]}, not '
                f'{dilations} and {padding}')
    if padding == 'same' and strides != (1, 1):
        return "conv2d has no padding 'same' with strides"
    return torch.ops.mmcontext_native.grouped_conv_refusal(
        group_channels, outputs // groups, groups, kernel[0], strides[0])


def _pair(value: Union[int, Sequence[int]]) -> Tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return tuple(value) if len(value) == 2 else (value[0], value[0])


@functools.lru_cache(maxsize=None)
def _refusal_of_gpu(index: int) -> str:
    """Why the kernels cannot run on a GPU; empty if they can."""
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return ('the tensor cores that it needs came with compute capability 8.0, this GPU has '
                + '.'.join(map(str, capability)))
    return torch.ops.mmcontext_native.gpu_refusal(index)


# Measured on an H200, forward and backward, rounded: the TFLOP/s of dense weights grow with the
# number of outputs, those of cuDNN's grouped kernels with the channels per group.
_DENSE_RATE, _MOST_DENSE_RATE = 4., 430.
_GROUPED_RATES = ((4, .9), (12, 8.), (32, 16.), (1 << 30, 26.))
_BANDWIDTH = 3.  # TB/s
_DENSE_WEIGHT = 20.  # us to make one, and to take the blocks of its gradient


@functools.lru_cache(maxsize=4096)
def estimated_microseconds(x: Tuple[int, ...], weight: Tuple[int, ...], stride: int, groups: int,
                           device: int, direct: bool) -> Dict[str, float]:
    """Estimated microseconds of forward and backward on a GPU such as an H200.

    Args:
        x: Its shape [B, C, H, W].
        weight: Its shape [Co, C / groups, Kh, Kw].
        stride: Vertical stride; the horizontal one is assumed equal.
        groups: Groups.
        device: Index of the GPU; -1 stands for an H100.
        direct: Whether 'direct' supports the call.

    Returns:
        Method -> microseconds.
    """
    batch, channels, rows, cols = x
    outputs, group_channels, *kernel = weight
    pixels = batch * -(-rows // stride) * -(-cols // stride)
    # In units of 1e6, since 1 TFLOP/s is 1e6 operations per microsecond.
    operations = 6e-6 * pixels * outputs * group_channels * kernel[0] * kernel[1]
    # x and y are each read or written three times.
    moved = 6e-6 * (batch * rows * cols * channels + pixels * outputs) / _BANDWIDTH
    rate = next(rate for most, rate in _GROUPED_RATES if group_channels <= most)
    times = {'grouped': operations / rate + moved,
             'dense': operations * groups / min(_DENSE_RATE * outputs, _MOST_DENSE_RATE) + moved
             + _DENSE_WEIGHT}
    if direct:
        times['direct'] = moved + sum(torch.ops.mmcontext_native.grouped_conv_microseconds(
            group_channels, outputs // groups, groups, kernel[0], stride, batch, rows, cols,
            device))
    return times


def _direct_refusal(x: Tensor, weight: Tensor, stride: _Pair, padding: _Pair, dilation: _Pair,
                    groups: int) -> Optional[str]:
    """Why the direct kernels do not support the call, or None."""
    return _unable(x) or _refusal_of_groups(tuple(weight.shape), stride, padding, dilation,
                                            groups) or None


def _ways(x: Tensor, weight: Tensor, stride: _Pair, padding: _Pair, dilation: _Pair,
          groups: int) -> Tuple[Dict[str, float], Dict[str, str]]:
    """Estimated microseconds of the candidate methods, and why others are not candidates."""
    reason = _refusal(x, weight, groups)
    if reason:
        return {'grouped': 0.}, {'dense': reason, 'direct': reason}
    unable = _direct_refusal(x, weight, stride, padding, dilation, groups)
    times = estimated_microseconds(tuple(x.shape), tuple(weight.shape), _pair(stride)[0], groups,
                                   x.device.index, unable is None)
    return times, {} if unable is None else {'direct': unable}


def _method(x: Tensor, weight: Tensor, stride: _Pair, padding: _Pair, dilation: _Pair,
            groups: int, method: Optional[str]) -> str:
    method = requested('method', method, METHOD_VARIABLE, _WAYS).way
    if method in ('auto', 'library'):
        times, _ = _ways(x, weight, stride, padding, dilation, groups)
        return min((way for way in times if method == 'auto' or way != 'direct'), key=times.get)
    if method in ('direct', 'null'):
        reason = _direct_refusal(x, weight, stride, padding, dilation, groups)
        if reason is None and x.is_cuda != (method == 'direct'):
            reason = f'x is on {x.device}'
        if reason is None and _dtype(x) not in _HALF:
            reason = f'it works in half precision, the convolution runs in {_dtype(x)}'
        if reason:
            raise cannot_serve('method', method, 'grouped_conv2d', reason)
    return method


def dense_weight(weight: Tensor, groups: int) -> Tensor:
    """The block-diagonal weight with which one group computes the same as several.

    Args:
        weight: [Co, C / groups, ...].
        groups: Groups.

    Returns:
        [Co, C, ...], zero where an output does not depend on a channel.
    """
    outputs, group_channels, *kernel = weight.shape
    blocks = weight.view(groups, outputs // groups, 1, group_channels, *kernel)
    # (torch 2.1 has no eye in half precision on a CPU.)
    own = torch.eye(groups, device=weight.device).to(weight.dtype)
    own = own.view(groups, 1, groups, 1, *(1 for _ in kernel))
    return (blocks * own).reshape(outputs, groups * group_channels, *kernel)


def grouped_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None,
                   stride: Union[int, Tuple[int, int]] = 1,
                   padding: Union[int, str, Tuple[int, int]] = 0,
                   dilation: Union[int, Tuple[int, int]] = 1, groups: int = 1,
                   method: Optional[str] = None) -> Tensor:
    """``torch.nn.functional.conv2d``, by the fastest of three methods on a GPU.

    Args: as ``conv2d``, and
        method: 'grouped': unchanged; 'dense': one group with a block-diagonal weight; 'library':
            the faster of these two by estimate; 'direct': our own kernels for narrow groups, half
            precision and channels-last maps on NVIDIA GPUs (an infinite value makes its
            neighbours' results NaN); 'null': those without their launches, on the CPU, to measure
            the host overhead; 'auto': the fastest of all by estimate, see
            :func:`explain_grouped_conv`. None for the environment variable
            ``MMCONTEXT_GROUPED_CONV``, or 'auto'.

    Raises:
        ValueError: The method is unknown.
        RuntimeError: 'direct' or 'null' does not support the call.
    """
    if groups > 1:
        chosen = _method(x, weight, stride, padding, dilation, groups, method)
        if chosen == 'dense':
            weight, groups = dense_weight(weight.to(_dtype(x)), groups), 1
        elif chosen != 'grouped':
            return _direct(x, weight, bias, _pair(stride)[0], groups,
                           'null' if chosen == 'null' else '')
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@functools.lru_cache(maxsize=4096)
def _ways_of_levels(x: Tuple[int, ...], levels: Tuple[Tuple, ...], device: int
                    ) -> Optional[Tuple[str, ...]]:
    """The fastest method for each (shape of weight, stride, padding, dilation, groups); None if
    the levels cannot be combined or none of them is direct."""
    ways, outputs = [], 0
    for weight, stride, padding, dilation, groups in levels:
        geometry = (stride, padding, dilation)
        if not all(isinstance(pair, tuple) and len(set(pair)) == 1 for pair in geometry):
            return None
        way = 'grouped'
        if groups > 1:
            able = not _refusal_of_groups(weight, *geometry, groups) and outputs % 8 == 0
            times = estimated_microseconds(x, weight, stride[0], groups, device, able)
            way = min(times, key=times.get)
        ways.append(way)
        outputs += weight[0]
    strides = {level[1] for level in levels}
    return tuple(ways) if 'direct' in ways and len(strides) == 1 and outputs % 8 == 0 else None


def conv_pyramid(x: Tensor, convolutions: Sequence[Tuple], method: Optional[str] = None
                 ) -> Optional[Tensor]:
    """Several convolutions of one map, concatenated, if :func:`grouped_conv2d` has direct kernels
    for one of them: they write into one result and accumulate into one gradient of x.

    Args:
        x: Feature map [B, C, H, W].
        convolutions: (weight, bias, stride, padding, dilation, groups) of each, as for
            ``conv2d``.
        method: As for :func:`grouped_conv2d`.

    Returns:
        [B, sum of Co, Ho, Wo]; None if they have to be called one by one.
    """
    if is_compiling():
        return None
    method = requested('method', method, METHOD_VARIABLE, _WAYS).way
    if method in ('library', 'grouped', 'dense') or x.is_cuda == (method == 'null'):
        return None
    if _dtype(x) not in _HALF or not lies_by_pixel(x):
        return None
    if _unable(x) or any(bias is not None for _, bias, *_ in convolutions):
        return None
    ways = _ways_of_levels(
        tuple(x.shape), tuple((tuple(weight.shape), *geometry)
                              for weight, _, *geometry in convolutions),
        x.device.index if x.is_cuda else -1)
    if ways is None:
        return None
    weights, paddings, dilations, all_groups, direct = [], [], [], [], []
    for way, (weight, _, _, padding, dilation, groups) in zip(ways, convolutions):
        if way == 'dense':
            weight, groups = dense_weight(weight.to(_dtype(x)), groups), 1
        weights.append(weight)
        paddings.append(padding[0])
        dilations.append(dilation[0])
        all_groups.append(groups)
        direct.append(int(way == 'direct'))
    return _pyramid(x, weights, convolutions[0][2][0], paddings, dilations, all_groups, direct,
                    'null' if method == 'null' else '')


def explain_grouped_conv(x: Tensor, weight: Tensor, groups: int, method: Optional[str] = None,
                         stride: Union[int, Tuple[int, int]] = 1,
                         padding: Union[int, str, Tuple[int, int], None] = None,
                         dilation: Union[int, Tuple[int, int]] = 1
                         ) -> Explanation:
    """Which method :func:`grouped_conv2d` would use, and why not the others.

    Args: as :func:`grouped_conv2d`; padding None is the one that keeps the size at stride 1.

    Returns:
        ``chosen``: 'grouped', 'dense' or 'direct', or the method requested; ``refused``: method
        -> reason, for 'dense' and 'direct' if 'auto' would not choose them.
    """
    if padding is None:
        padding = tuple(size // 2 for size in weight.shape[-2:])
    geometry = (stride, padding, dilation, groups)
    times, refused = _ways(x, weight, *geometry)
    fastest = min(times, key=times.get)
    refused.update((name, f'{times[name]:.0f} us are estimated, {times[fastest]:.0f} of {fastest}')
                   for name in times if name not in ('grouped', fastest))
    return explanation(_method(x, weight, *geometry, method), refused)
