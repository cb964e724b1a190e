"""Average pooling of channels-last maps.

On a GPU torch's gradient takes ten times as long as its memory traffic would; CUDA kernels that
gather 16 bytes of channels at a time replace it (``csrc/avg_pool.cpp``,
``csrc/cuda/avg_pool.cu``).
"""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.arguments import IntPair, per_axis
from mmcontext.ops.choice import Explanation
from mmcontext.ops.kernel_switch import KernelSwitch

METHOD_VARIABLE = 'MMCONTEXT_AVG_POOL'
_switch = KernelSwitch('avg_pool2d', METHOD_VARIABLE, 'avg_pool_refusal')


def avg_pool2d(x: Tensor, kernel_size: IntPair, stride: Optional[IntPair] = None,
               padding: IntPair = 0, ceil_mode: bool = False, count_include_pad: bool = True,
               method: Optional[str] = None) -> Tensor:
    """``torch.nn.functional.avg_pool2d``, with our own kernels where those are faster.

    Args: as ``avg_pool2d``, and
        method: 'auto': the CUDA kernels if they support the call, see :func:`explain_avg_pool`,
            else torch's; 'cuda'; 'torch'; 'null': on the CPU, everything but the launches (the
            result is not written), to measure the host overhead. None for the environment
            variable ``MMCONTEXT_AVG_POOL``, or 'auto'.

    Raises:
        ValueError: The method is unknown.
        RuntimeError: 'cuda' or 'null' does not support the call.
    """
    if stride is None:
        stride = kernel_size
    if _switch.may_serve(x, method):
        y = torch.ops.mmcontext_native.avg_pool(x, kernel_size, stride, padding, ceil_mode,
                                                count_include_pad, method or '')
        if y is not None:
            return y
    _switch.insist(method, x, kernel_size, stride, padding, ceil_mode)
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def explain_avg_pool(x: Tensor, kernel_size: IntPair, stride: Optional[IntPair] = None,
                     padding: IntPair = 0, ceil_mode: bool = False,
                     method: Optional[str] = None) -> Explanation:
    """Which method :func:`avg_pool2d` would use for a map, and why not the kernels.

    Returns:
        ``chosen``: 'cuda', 'null' or 'torch'; ``refused``: {'cuda': reason} if the kernels do not
        support the call, else empty.
    """
    return _switch.explain(method, x, per_axis('kernel_size', kernel_size, 2, 1),
                           per_axis('stride', kernel_size if stride is None else stride, 2, 1),
                           per_axis('padding', padding, 2, 0), ceil_mode)
