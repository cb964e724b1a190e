"""The kernels of an involution, computed from reduced features one part at a time."""
from typing import Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.layout import is_channels_last
from mmcontext.ops.local_aggregation.backends import Geometry

# Bytes of kernels made at a time: about what the last-level cache of one or two cores holds,
# and enough work for every multiprocessor of a GPU.
_CHUNK_BYTES = {'cpu': 2 << 20, 'cuda': 32 << 20}


class Chunk(NamedTuple):
    """A part of the kernels: some images, some groups, some output rows."""
    images: slice
    groups: slice
    rows: slice


def _chunks(batch: int, groups: int, height: int, row_bytes: int, limit: int,
            channels_last: bool) -> Iterator[Chunk]:
    """Cut the kernels [batch, groups, taps, height, width] into parts of at most ``limit`` bytes.

    Whole images if they fit, else groups of one image, else rows of one group. Channels-last
    kernels hold all groups of a pixel together and are cut into rows instead of groups.

    Args:
        row_bytes: Bytes of the kernels of one group in one row.
    """
    group_bytes = row_bytes * height
    images = max(1, limit // (group_bytes * groups))
    if images > 1 or group_bytes * groups <= limit:
        part_groups, part_rows = groups, height
    elif channels_last:
        part_groups, part_rows = groups, max(1, limit // (row_bytes * groups))
    else:
        part_groups = max(1, limit // group_bytes)
        part_rows = height if group_bytes <= limit else max(1, limit // row_bytes)
    for b in range(0, batch, images):
        for g in range(0, groups, part_groups):
            for row in range(0, height, part_rows):
                yield Chunk(slice(b, min(b + images, batch)),
                             slice(g, min(g + part_groups, groups)),
                             slice(row, min(row + part_rows, height)))


class ChunkedKernels:
    """The operands of one call, cut into chunks."""

    def __init__(self, x: Tensor, r: Tensor, weight: Tensor, bias: Optional[Tensor],
                 scale: Optional[Tensor], geometry: Geometry) -> None:
        self.x, self.r, self.weight, self.bias, self.scale = x, r, weight, bias, scale
        self.geometry = geometry
        self.taps = geometry.kernel_size[0] * geometry.kernel_size[1]
        self.groups = weight.shape[0] // self.taps
        self.shared = x.shape[1] // self.groups
        self.channels_last = is_channels_last(x)
        self._buffer = None

    def chunks(self) -> Iterator[Chunk]:
        out_h, out_w = self.r.shape[-2:]
        limit = _CHUNK_BYTES.get(self.x.device.type, _CHUNK_BYTES['cuda'])
        return _chunks(self.x.shape[0], self.groups, out_h,
                       self.taps * out_w * self.x.element_size(), limit, self.channels_last)

    def channels(self, chunk: Chunk) -> slice:
        """Channels of the feature map that the groups of a chunk apply to."""
        return slice(chunk.groups.start * self.shared, chunk.groups.stop * self.shared)

    def outs(self, chunk: Chunk) -> slice:
        """Rows of the weight that produce the kernels of a chunk."""
        return slice(chunk.groups.start * self.taps, chunk.groups.stop * self.taps)

    def reduced(self, chunk: Chunk) -> Tensor:
        """The reduced features of a chunk as matrices, [images, Cr, pixels]."""
        r = self.r[chunk.images, :, chunk.rows]
        if self.channels_last:
            return r.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
        return r.flatten(2)

    def kernels(self, chunk: Chunk) -> Tensor:
        """The kernels of a chunk, [images, groups, taps, rows, Wo], in a buffer that is reused."""
        r, weight = self.reduced(chunk), self.weight[self.outs(chunk)]
        images, pixels, outs = r.shape[0], r.shape[2], weight.shape[0]
        if self._buffer is None:
            self._buffer = r.new_empty(images * pixels * outs)
        buffer = self._buffer[:images * pixels * outs]
        bias = None if self.bias is None else self.bias[self.outs(chunk)]
        rows, out_w = chunk.rows.stop - chunk.rows.start, self.r.shape[-1]
        if self.channels_last:
            flat, out = r.transpose(1, 2).reshape(images * pixels, -1), buffer.view(-1, outs)
            if bias is None:
                torch.mm(flat, weight.t(), out=out)
            else:
                torch.addmm(bias, flat, weight.t(), out=out)
            kernels = out.view(images, rows, out_w, outs).permute(0, 3, 1, 2)
        else:
            out = buffer.view(images, outs, pixels)
            weights = weight.expand(images, -1, -1)
            if bias is None:
                torch.bmm(weights, r, out=out)
            else:
                torch.baddbmm(bias[:, None].expand_as(out), weights, r, out=out)
            kernels = out.view(images, outs, rows, out_w)
        return kernels.unflatten(1, (-1, self.taps))

    def source(self, chunk: Chunk) -> Tuple[Tensor, Geometry, slice, int]:
        """The input of a chunk.

        Returns:
            The scaled input rows, zero-padded beyond the border; the geometry that maps them to
            the output rows of the chunk; the slice of x's rows among them; and the number of
            zero rows above those.
        """
        x = self.x[chunk.images, self.channels(chunk)]
        height = x.shape[2]
        if self.scale is not None:
            scale = self.scale[chunk.images, self.channels(chunk), None, None]
        if chunk.rows == slice(0, self.r.shape[2]):
            return (x if self.scale is None else x * scale), self.geometry, slice(0, height), 0
        (kernel, _), (stride, _), (pad, pad_w), (dilation, _), _ = self.geometry
        first = chunk.rows.start * stride - pad
        last = (chunk.rows.stop - 1) * stride + dilation * (kernel - 1) - pad + 1
        above = min(max(0, -first), last - first)
        below = min(max(0, last - height), last - first)
        rows = slice(min(first + above, height), max(last - below, 0))
        x = x[:, :, rows]
        if self.scale is not None:
            x = x * scale
        if above or below:
            x = F.pad(x, (0, 0, above, below))
        return x, self.geometry._replace(padding=(0, pad_w)), rows, above
