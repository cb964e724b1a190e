"""The 1x1 convolution of two maps without concatenating them first.

A concatenation writes as much as the maps hold; on GPUs, in half precision and channels-last, the
convolution is one matrix product per map instead (``csrc/pair_conv.cpp``).
"""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.choice import Explanation
from mmcontext.ops.kernel_switch import KernelSwitch

METHOD_VARIABLE = 'MMCONTEXT_PAIR_CONV'
_switch = KernelSwitch('pair_conv', METHOD_VARIABLE, 'pair_conv_refusal')


def join_maps(x: Tensor, other: Tensor, groups: int = 1) -> Tensor:
    """Two maps [B, C, H, W] as [B, 2 C, H, W]: concatenated or, for several groups, with
    alternating channels."""
    if groups == 1:
        return torch.cat((x, other), dim=1)
    return torch.stack((x, other), dim=2).flatten(1, 2)


def products(x: Tensor, other: Tensor, weight: Tensor, groups: int = 1,
             method: Optional[str] = None) -> Optional[Tensor]:
    """The result of :func:`pair_conv` by matrix products; None if they are not supported."""
    if type(other) is Tensor and _switch.may_serve(x, method):
        return torch.ops.mmcontext_native.pair_conv(x, other, weight, groups, method or '')
    return None


def pair_conv(x: Tensor, other: Tensor, weight: Tensor, groups: int = 1,
              method: Optional[str] = None) -> Tensor:
    """``conv2d(join_maps(x, other, groups), weight, groups=groups)``.

    Args:
        x: Feature map [B, C, H, W].
        other: Map like ``x``.
        weight: [Co, 2 C / groups, 1, 1].
        groups: Groups of the convolution.
        method: 'auto': matrix products if they are supported, see :func:`explain_pair_conv`, else
            torch's functions; 'cuda'; 'torch'; 'null': the products on the CPU. None for the
            environment variable ``MMCONTEXT_PAIR_CONV``, or 'auto'.

    Returns:
        [B, Co, H, W].

    Raises:
        ValueError: The method is unknown.
        RuntimeError: 'cuda' or 'null' is not supported.
    """
    y = products(x, other, weight, groups, method)
    if y is not None:
        return y
    _switch.insist(method, x, other)
    return F.conv2d(join_maps(x, other, groups), weight, groups=groups)


def explain_pair_conv(x: Tensor, other: Tensor,
                      method: Optional[str] = None) -> Explanation:
    """Which method :func:`pair_conv` would use for two maps, and why not matrix products.

    Returns:
        ``chosen``: 'cuda', 'null' or 'torch'; ``refused``: {'cuda': reason} if the products are
        not supported, else empty.
    """
    return _switch.explain(method, x, other)
