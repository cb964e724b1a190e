"""A convolution of many narrow groups, which cuDNN leaves to slow kernels.

In half precision and channels-last, cuDNN runs grouped convolutions by kernels that use no tensor
cores. The same convolution with one group, whose weight has zeros between the groups, does up to
64 times the arithmetic and takes a fifth to a twelfth of the time
(tools/benchmarks/gpu_networks.md).
"""
import os
from typing import Dict, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.local_aggregation.operators import autocast_dtype
from mmcontext.ops.tracing import is_exporting

METHOD_VARIABLE = 'MMCONTEXT_GROUPED_CONV'
_METHODS = ('auto', 'grouped', 'dense')
# Measured where the dense weight has no more elements than this in one tap.
_MOST_DENSE = 256 * 256
_MOST_GROUP_CHANNELS = 16


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype that the convolution runs in."""
    if x.is_cuda and torch.is_autocast_enabled() and x.dtype.is_floating_point:
        return autocast_dtype('cuda')
    return x.dtype


def dense_refusal(x: Tensor, weight: Tensor, groups: int) -> Optional[str]:
    """Why a dense weight does not pay, or None.

    Args:
        x: Feature map [B, C, H, W].
        weight: [Co, C / groups, Kh, Kw].
        groups: Groups of the convolution.
    """
    if groups == 1:
        return 'there is one group'
    if not x.is_cuda or torch.version.hip:
        return f'it was measured on NVIDIA GPUs, x is on {x.device}'
    if is_exporting():
        return 'a graph for another runtime is being recorded'
    if _dtype(x) not in (torch.float16, torch.bfloat16):
        return f'it pays in half precision, the convolution runs in {_dtype(x)}'
    if not x.is_contiguous(memory_format=torch.channels_last):
        return 'it pays for channels-last maps'
    channels, outputs, group_channels = x.shape[1], weight.shape[0], weight.shape[1]
    if groups == 2 and tuple(weight.shape[-2:]) == (1, 1):
        return None
    if group_channels > _MOST_GROUP_CHANNELS:
        return f'groups of {group_channels} channels are wide enough for cuDNN'
    if group_channels > 4 and channels * outputs > _MOST_DENSE:
        return f'a dense weight of {outputs} x {channels} a tap is too large'
    if group_channels == 8 and max(weight.shape[-2:]) >= 5:
        return 'the gradients of groups of 8 channels and large kernels are slower dense'
    return None


def _method(x: Tensor, weight: Tensor, groups: int, method: Optional[str]) -> str:
    source = 'method' if method is not None else METHOD_VARIABLE
    if method is None:
        method = os.environ.get(METHOD_VARIABLE) or 'auto'
    if method not in _METHODS:
        raise ValueError(f'{source} must be one of {", ".join(_METHODS)}, got {method!r}')
    if method == 'auto':
        return 'grouped' if dense_refusal(x, weight, groups) else 'dense'
    return method


def dense_weight(weight: Tensor, groups: int) -> Tensor:
    """The weight of one group that does what a weight of several does.

    Args:
        weight: [Co, C / groups, ...].
        groups: Groups.

    Returns:
        [Co, C, ...], zero where an output does not see a channel.
    """
    outputs, group_channels, *kernel = weight.shape
    blocks = weight.view(groups, outputs // groups, 1, group_channels, *kernel)
    own = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    own = own.view(groups, 1, groups, 1, *(1 for _ in kernel))
    return (blocks * own).reshape(outputs, groups * group_channels, *kernel)


def grouped_conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None,
                   stride: Union[int, Tuple[int, int]] = 1,
                   padding: Union[int, str, Tuple[int, int]] = 0,
                   dilation: Union[int, Tuple[int, int]] = 1, groups: int = 1,
                   method: Optional[str] = None) -> Tensor:
    """``torch.nn.functional.conv2d``, with a dense weight where that is faster.

    Args: as ``conv2d``, and
        method: 'grouped': as it is; 'dense': one group whose weight has zeros; 'auto' or None:
            the faster by measured geometries, see :func:`explain_grouped_conv`. The environment
            variable ``MMCONTEXT_GROUPED_CONV`` stands in for None.

    Raises:
        ValueError: The method is unknown.
    """
    if groups > 1 and _method(x, weight, groups, method) == 'dense':
        weight, groups = dense_weight(weight.to(_dtype(x)), groups), 1
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def explain_grouped_conv(x: Tensor, weight: Tensor, groups: int,
                         method: Optional[str] = None) -> Dict[str, Union[str, Dict[str, str]]]:
    """Which method :func:`grouped_conv2d` would use, and why not the dense one.

    Returns:
        ``chosen``: 'grouped' or 'dense'; ``refused``: {'dense': reason} where 'auto' would not
        take it, else empty.
    """
    reason = dense_refusal(x, weight, groups)
    return {'chosen': _method(x, weight, groups, method),
            'refused': {} if reason is None else {'dense': reason}}
