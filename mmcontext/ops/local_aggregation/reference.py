"""The aggregation as defined, in plain, differentiable torch: the oracle of the tests."""
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.local_aggregation.backends import Geometry, accumulation_dtype


def aggregate(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Sum of the shifted, weighted copies of the zero-padded input.

    Exports take the shorter graph of :func:`aggregate_standard` instead.

    Args:
        x: [B, C, H, W].
        w: [B, G, Kh*Kw, Ho, Wo].
        geometry: Geometry of the aggregation.

    Returns:
        [B, C, Ho, Wo].
    """
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dil_h, dil_w), interleaved = \
        geometry
    groups, (out_h, out_w) = w.shape[1], w.shape[-2:]
    dtype = accumulation_dtype(x.dtype)
    kernels = w.to(dtype).unsqueeze(1 if interleaved else 2)
    shared = x.shape[1] // groups
    split = (shared, groups) if interleaved else (groups, shared)
    padded = F.pad(x.to(dtype), (pad_w, pad_w, pad_h, pad_h)).unflatten(1, split)
    output = None
    for tap in range(kernel_h * kernel_w):
        top, left = tap // kernel_w * dil_h, tap % kernel_w * dil_w
        shifted = padded[..., top:top + (out_h - 1) * stride_h + 1:stride_h,
                         left:left + (out_w - 1) * stride_w + 1:stride_w]
        term = shifted * kernels[:, :, :, tap]
        output = term if output is None else output + term
    return output.flatten(1, 2).to(x.dtype)
