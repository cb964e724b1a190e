"""The aggregation in a small number of standard operators, which exporters support."""
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.local_aggregation.backends import Geometry, accumulation_dtype

# Output pixels of a row per matrix product.
_TILE = 7
# From this many taps on, matrix products are faster in onnxruntime.
_MANY_TAPS = 25


def aggregate_standard(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """The form that onnxruntime runs fastest; arguments as for :func:`aggregate_rows`."""
    (kernel_h, kernel_w), _, _, (_, dil_w), _ = geometry
    if dil_w == 1 and kernel_h * kernel_w >= _MANY_TAPS:
        return aggregate_tiles(x, w, geometry)
    return aggregate_rows(x, w, geometry)


def aggregate_tiles(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Tile by tile along the output rows: the kernels of a tile form one banded matrix.

    The matrix [tile, Kh * span] times the span of input columns under the tile, [Kh * span,
    C/G], sums over all taps at once. This is twice the necessary arithmetic, but in matrix
    products, and each kernel and pixel is moved a few times instead of Kh*Kw times. Any height
    and width, as :func:`aggregate_rows`.

    Args: as :func:`aggregate_rows`; the horizontal dilation must be 1.

    Returns:
        [B, C, Ho, Wo].
    """
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dil_h, _), interleaved = geometry
    groups, channels = int(w.shape[1]), int(x.shape[1])
    shared = channels // groups
    batch, out_h, out_w = w.shape[0], w.shape[3], w.shape[4]
    # The input columns of a tile begin in one step of the input and end within the next.
    tile = max(_TILE, -(-kernel_w // stride_w))
    step = tile * stride_w
    span = step + kernel_w
    tiles = (out_w + (tile - 1)) // tile
    dtype = accumulation_dtype(x.dtype)

    # The rows of the matrix are stride_w too long and then read as if they were not: this shifts
    # each kernel stride_w further to the right than the one before.
    matrix = w.to(dtype).reshape(batch * groups * kernel_h, kernel_w, out_h, out_w)
    matrix = F.pad(matrix, (0, tiles * tile - out_w, 0, 0, 0, span - kernel_w))
    matrix = matrix.reshape(batch * groups, kernel_h * span, out_h, tiles * tile)
    matrix = matrix.permute(0, 2, 3, 1).reshape(
        batch * groups, out_h, tiles, tile * kernel_h * span)
    length = kernel_h * span - stride_w
    matrix = matrix[..., :tile * length].reshape(batch * groups, out_h, tiles, tile, length)

    padded = F.pad(x.to(dtype), (pad_w, (tiles + 1) * step - x.shape[3] - pad_w, pad_h, pad_h))
    height = padded.shape[2]
    split = (shared, groups) if interleaved else (groups, shared)
    padded = padded.reshape(batch, *split, height, (tiles + 1) * step)
    padded = padded.permute((0, 2, 3, 4, 1) if interleaved else (0, 1, 3, 4, 2))
    padded = padded.reshape(batch * groups, height, tiles + 1, step, shared)
    columns = torch.cat([padded[:, :, :-1], padded[:, :, 1:, :kernel_w]], dim=3)
    reach = (kernel_h - 1) * dil_h
    rows = [columns[:, top:(top - reach) or None:stride_h] for top in range(0, reach + 1, dil_h)]
    rows[-1] = rows[-1][:, :, :, :span - stride_w]
    output = matrix @ torch.cat(rows, dim=3)

    output = output.reshape(batch, groups, out_h, tiles * tile, shared)[:, :, :, :out_w]
    output = output.permute((0, 4, 1, 2, 3) if interleaved else (0, 1, 4, 2, 3))
    return output.reshape(batch, channels, out_h, out_w).to(x.dtype)


def aggregate_rows(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Row by row of the kernel: the columns are shifted once, then Kh products are summed.

    A third of the graph nodes of a sum over all taps and no slower in onnxruntime, where an
    unfold (im2col) takes ten times as long. No tensor size enters the graph: it works for inputs
    of any height and width.

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
