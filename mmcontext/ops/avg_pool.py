"""Average pool of channels-last maps.

torch's gradient of it takes ten times as long as its bytes on a GPU; CUDA kernels that gather
16 bytes of channels at a time serve there (``csrc/avg_pool.cpp``, ``csrc/cuda/avg_pool.cu``).
"""
import os
from typing import Dict, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.arguments import IntPair, per_axis
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.tracing import eager_refusal

METHOD_VARIABLE = 'MMCONTEXT_AVG_POOL'
# 'null': all that the host does for a launch, on the CPU and without the launch.
_METHODS = ('auto', 'cuda', 'torch', 'null')


def _method(method: Optional[str]) -> str:
    source = 'method' if method is not None else METHOD_VARIABLE
    if method is None:
        method = os.environ.get(METHOD_VARIABLE) or 'auto'
    if method not in _METHODS:
        raise ValueError(f'{source} must be one of {", ".join(_METHODS)}, got {method!r}')
    return method


def _refusal(x: Tensor, kernel_size: IntPair, stride: IntPair, padding: IntPair, ceil_mode: bool,
             on_host: bool) -> Optional[str]:
    if UNAVAILABLE:
        return UNAVAILABLE
    if type(x) is not Tensor:
        return 'x is of a subclass of Tensor'
    return eager_refusal() or torch.ops.mmcontext_native.avg_pool_refusal(
        x, kernel_size, stride, padding, ceil_mode, on_host) or None


def avg_pool2d(x: Tensor, kernel_size: IntPair, stride: Optional[IntPair] = None,
               padding: IntPair = 0, ceil_mode: bool = False, count_include_pad: bool = True,
               method: Optional[str] = None) -> Tensor:
    """``torch.nn.functional.avg_pool2d``, by kernels of our own where those are faster.

    Args: as ``avg_pool2d``, and
        method: 'auto': the CUDA kernels where they can serve, see :func:`explain_avg_pool`, else
            torch's; 'cuda'; 'torch'; 'null': on the CPU, everything but the launches (the result
            is not written), to measure the host. None for the environment variable
            ``MMCONTEXT_AVG_POOL``, or 'auto'.

    Raises:
        ValueError: The method is unknown.
        RuntimeError: 'cuda' or 'null' cannot serve.
    """
    if stride is None:
        stride = kernel_size
    if (type(x) is Tensor and not UNAVAILABLE and method != 'torch'
            and (x.is_cuda or (method or os.environ.get(METHOD_VARIABLE)) == 'null')
            and eager_refusal() is None):
        y = torch.ops.mmcontext_native.avg_pool(x, kernel_size, stride, padding, ceil_mode,
                                                count_include_pad, method or '')
        if y is not None:
            return y
    if method is not None and _method(method) in ('cuda', 'null'):
        reason = _refusal(x, kernel_size, stride, padding, ceil_mode, method == 'null')
        raise RuntimeError(f'method {method!r} of avg_pool2d cannot serve: {reason}')
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def explain_avg_pool(x: Tensor, kernel_size: IntPair, stride: Optional[IntPair] = None,
                     padding: IntPair = 0, ceil_mode: bool = False,
                     method: Optional[str] = None) -> Dict[str, Union[str, Dict[str, str]]]:
    """How :func:`avg_pool2d` would serve a map, and why not by the kernels.

    Returns:
        ``chosen``: 'cuda', 'null' or 'torch'; ``refused``: {'cuda': reason} where the kernels
        cannot serve, else empty.
    """
    wanted = _method(method)
    reason = _refusal(x, per_axis('kernel_size', kernel_size, 2, 1),
                      per_axis('stride', kernel_size if stride is None else stride, 2, 1),
                      per_axis('padding', padding, 2, 0), ceil_mode, wanted == 'null')
    if wanted == 'auto':
        wanted = 'torch' if reason else 'cuda'
    return {'chosen': wanted, 'refused': {} if reason is None else {'cuda': reason}}
