"""Group norm of contiguous maps on a GPU, as CoT's kernels are.

torch's takes eight kernels and as many passes over the map, forwards and backwards, in float32
under autocast; here it is one forwards and two backwards (``csrc/group_norm.cpp``,
``csrc/cuda/group_norm.cu``).
"""
from typing import Optional

import torch
from torch import Tensor

from mmcontext.ops.choice import Explanation
from mmcontext.ops.kernel_switch import KernelSwitch

METHOD_VARIABLE = 'MMCONTEXT_GROUP_NORM'
_switch = KernelSwitch('group_norm', METHOD_VARIABLE, 'group_norm_refusal')


def group_norm(x: Tensor, groups: int, weight: Optional[Tensor] = None,
               bias: Optional[Tensor] = None, eps: float = 1e-5,
               method: Optional[str] = None) -> Tensor:
    """Group norm in the dtype of ``x``, with statistics in float32, also under autocast.

    Args:
        x: Feature map [B, C, H, W].
        groups: Number of groups.
        weight: [C]; None for 1.
        bias: [C]; None for 0.
        eps: Added to the variance. Defaults to 1e-5.
        method: 'auto': the CUDA kernels if they support the call, see
            :func:`explain_group_norm`, else torch's function; 'cuda'; 'torch'; 'null': on the
            CPU, everything but the launches (the result is not written). None for the
            environment variable ``MMCONTEXT_GROUP_NORM``, or 'auto'.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: The method is unknown.
        RuntimeError: 'cuda' or 'null' does not support the call.
    """
    if _switch.may_serve(x, method):
        y = torch.ops.mmcontext_native.group_norm(x, groups, weight, bias, eps, method or '')
        if y is not None:
            return y
    _switch.insist(method, x, groups, weight, bias)
    weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    # (Not F.group_norm, which autocast runs in float32.)
    return torch.native_group_norm(x, weight, bias, x.shape[0], x.shape[1],
                                   x.shape[2] * x.shape[3], groups, eps)[0]


def explain_group_norm(x: Tensor, groups: int, weight: Optional[Tensor] = None,
                       bias: Optional[Tensor] = None,
                       method: Optional[str] = None) -> Explanation:
    """Which method :func:`group_norm` would use for a map, and why not the kernels.

    Returns:
        ``chosen``: 'cuda', 'null' or 'torch'; ``refused``: {'cuda': reason} if the kernels do not
        support the call, else empty.
    """
    return _switch.explain(method, x, groups, weight, bias)
