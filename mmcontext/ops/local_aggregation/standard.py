"""The aggregation in the standard operators that exporters know, in few of them."""
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.local_aggregation.backends import Geometry, accumulation_dtype


def aggregate_rows(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Row by row of the kernel: the columns are shifted once, then Kh products are summed.

    A third of the graph nodes of a sum over all taps and no slower in onnxruntime, where an
    unfold (im2col) takes ten times as long. No size of a tensor enters the graph: it serves
    inputs of every height and width.

    Args:
        x: [B, C, H, W].
        w: [B, G, Kh*Kw, Ho, Wo].
        geometry: Geometry of the aggregation.

    Returns:
        [B, C, Ho, Wo].
    """
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dil_h, dil_w), interleaved = \
        geometry
    groups, channels = int(w.shape[1]), int(x.shape[1])
    reach_h, reach_w = (kernel_h - 1) * dil_h, (kernel_w - 1) * dil_w
    dtype = accumulation_dtype(x.dtype)
    shared = channels // groups
    split = (shared, groups) if interleaved else (groups, shared)
    padded = F.pad(x.to(dtype), (pad_w, pad_w, pad_h, pad_h))
    padded = padded.reshape(padded.shape[0], *split, padded.shape[2], padded.shape[3])
    columns = torch.stack([padded[..., left:(left - reach_w) or None:stride_w]
                           for left in range(0, reach_w + 1, dil_w)], dim=3)
    kernels = w.to(dtype).reshape(w.shape[0], groups, kernel_h, kernel_w, w.shape[3], w.shape[4])
    kernels = kernels.unsqueeze(1 if interleaved else 2)
    output = None
    for row in range(kernel_h):
        top = row * dil_h
        rows = columns[..., top:(top - reach_h) or None:stride_h, :]
        term = (rows * kernels[:, :, :, row]).sum(dim=3)
        output = term if output is None else output + term
    output = output.reshape(output.shape[0], channels, output.shape[3], output.shape[4])
    return output.to(x.dtype)
