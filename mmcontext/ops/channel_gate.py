"""Channel gates: the channels of each image are scaled by factors computed from their means.

Used by squeeze-and-excitation, split attention and C-volution. For one of them torch reads and
writes a map up to five times and launches a dozen kernels in the forward pass; on GPUs, CUDA
kernels for channels-last maps read it twice and write it once (``csrc/channel_gate.cpp``,
``csrc/cuda/channel_gate.cu``).
"""
from typing import Callable, Optional

import torch
from torch import Tensor

from mmcontext.ops.choice import Explanation
from mmcontext.ops.conv_norm_act import channel_means
from mmcontext.ops.kernel_switch import KernelSwitch

METHOD_VARIABLE = 'MMCONTEXT_CHANNEL_GATE'
_switch = KernelSwitch('the channel gate', METHOD_VARIABLE, 'channel_gate_refusal')


def gate_by_means(x: Tensor, logits: Callable[[Tensor], Tensor], other: Optional[Tensor] = None,
                  method: Optional[str] = None, exact: bool = False) -> Tensor:
    """``x`` gated by a sigmoid, or mixed with another map by a softmax over the two.

    Args:
        x: Feature map [B, C, H, W].
        logits: Maps the means [B, C, 1, 1] of ``x`` to logits [B, C, 1, 1]; with ``other``, the
            means of the sum of both maps to [B, 2 C, 1, 1], the two logits of a channel side by
            side, that of ``x`` first.
        other: Map like ``x``; None for a gate.
        method: 'auto': the CUDA kernels if they support the call, see
            :func:`explain_channel_gate`, else torch's functions; 'cuda'; 'torch'; 'null': on the
            CPU, everything but the launches (the result is not written), to measure the host
            overhead. None for the environment variable ``MMCONTEXT_CHANNEL_GATE``, or 'auto'.
        exact: Let the kernels pass the means in float32 whatever the dtype of ``x``.

    Returns:
        [B, C, H, W] in x's dtype.

    Raises:
        ValueError: The method is unknown.
        RuntimeError: 'cuda' or 'null' does not support the call.
    """
    if other is not None and (type(x) is not Tensor or other.dtype != x.dtype):
        other = other.to(x.dtype)
    if _switch.may_serve(x, method):
        joined = torch.ops.mmcontext_native.gate_means(x, other, exact, method or '')
        if joined:
            means, x, *rest = joined
            return torch.ops.mmcontext_native.gate_channels(x, rest[0] if rest else None,
                                                            logits(means))
    _switch.insist(method, x, other)
    if other is None:
        return x * logits(channel_means(x)).sigmoid()
    pairs = logits(channel_means(x, other)).view(x.shape[0], x.shape[1], 2, 1, 1)
    # A softmax over two logits is a sigmoid of their difference, and applying it an
    # interpolation: one pass over the features instead of three.
    weight = torch.sigmoid(pairs[:, :, 0] - pairs[:, :, 1]).to(x.dtype)
    return torch.lerp(other, x, weight)


def gate_by_convolution(x: Tensor, weight: Tensor, groups: int, pixels: int,
                        method: Optional[str] = None) -> Tensor:
    """``x`` times the mean of a grouped convolution of it in which every tap meets every pixel.

    Args:
        x: Feature map [B, C, H, W].
        weight: [C, C / groups, Kh, Kw].
        groups: Groups of the convolution.
        pixels: Number of pixels of the convolution's result, over which the mean is taken.
        method: As for :func:`gate_by_means`.

    Returns:
        [B, C, H, W] in x's dtype.

    Raises: as :func:`gate_by_means`.
    """
    if _switch.may_serve(x, method):
        y = torch.ops.mmcontext_native.gate_by_convolution(x, weight, groups, pixels,
                                                           method or '')
        if y is not None:
            return y
    _switch.insist(method, x, None)
    return x * grouped_product(x.sum(dim=(2, 3)) / pixels, weight, groups)


def grouped_product(vectors: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A grouped convolution of a map whose every pixel is ``vectors``.

    Args:
        vectors: [B, C].
        weight: [Co, C / groups, Kh, Kw].
        groups: Groups of the convolution.

    Returns:
        [B, Co, 1, 1].
    """
    vectors = vectors.view(vectors.shape[0], groups, weight.shape[1])
    taps = weight.sum(dim=(2, 3)).unflatten(0, (groups, -1))
    # On the CPU a grouped convolution of one pixel would take several times as long.
    return torch.einsum('bgi,goi->bgo', vectors, taps).flatten(1)[:, :, None, None]


def explain_channel_gate(x: Tensor, other: Optional[Tensor] = None,
                         method: Optional[str] = None) -> Explanation:
    """Which method :func:`gate_by_means` and :func:`gate_by_convolution` would use for a map, and
    why not the kernels.

    Returns:
        ``chosen``: 'cuda', 'null' or 'torch'; ``refused``: {'cuda': reason} if the kernels do not
        support the call, else empty.
    """
    return _switch.explain(method, x, other)
