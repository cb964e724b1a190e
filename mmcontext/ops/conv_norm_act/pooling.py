"""Means over the pixels."""
import torch
from torch import Tensor

from mmcontext.ops.conv_norm_act.frontend import compiled_method
from mmcontext.ops.layout import lies_by_pixel
from mmcontext.ops.tracing import is_recording


def channel_means(*maps: Tensor) -> Tensor:
    """Mean over the pixels, [B, C, 1, 1], of the sum of maps [B, C, H, W] of the same size."""
    if all(compiled_method(x) and (x.is_contiguous() or lies_by_pixel(x))
           for x in maps):
        return torch.ops.mmcontext_native.channel_means(maps)
    # One by one, so that the sum of the maps is never written.
    return sum(spatial_mean(x) for x in maps)


def spatial_mean(x: Tensor) -> Tensor:
    """Mean over the pixels, [B, C, 1, 1], of a map [B, C, H, W].

    Axis by axis in a graph that is being recorded: onnxruntime sums a plane in one chain of
    additions, whose rounding grows with the plane to 40 times torch's.
    """
    if is_recording():
        return x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    return x.mean(dim=(2, 3), keepdim=True)
