"""Functions that exporters cannot trace, in terms of ONNX operators."""
import contextlib
import sys
from typing import Iterator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.deployment.onnxruntime_library import DOMAIN
from mmcontext.ops import standard_operators
from mmcontext.ops.conv_norm_act import spatial_mean
from mmcontext.ops.local_aggregation.backends import Geometry
from mmcontext.ops.local_aggregation.standard import aggregate_standard
from mmcontext.ops.tracing import untraced


def _constant(g, value, dtype: torch.dtype):
    return g.op('Constant', value_t=torch.tensor([value], dtype=dtype))


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator of that name for one class."""

    @staticmethod
    def forward(ctx, boxes: Tensor, scores: Tensor, limit: int, iou_threshold: float) -> Tensor:
        from mmcv.ops import nms
        chosen = []
        with untraced():
            for image in range(len(boxes)):
                present = (scores[image, 0] >= 0).nonzero().flatten()
                kept = nms(boxes[image, present], scores[image, 0, present], iou_threshold)[1]
                kept = present[kept[:limit]]
                chosen.append(torch.stack([torch.full_like(kept, image), torch.zeros_like(kept),
                                           kept], dim=1))
            return torch.cat(chosen)

    @staticmethod
    def symbolic(g, boxes, scores, limit: int, iou_threshold: float):
        # Scores below zero mean that there is no box.
        return g.op('NonMaxSuppression', boxes, scores, _constant(g, limit, torch.int64),
                    _constant(g, iou_threshold, torch.float32),
                    _constant(g, -0.5, torch.float32))


def keep_best(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, limit: int,
              class_agnostic: bool = False) -> Tuple[Tensor, Tensor]:
    """mmcv's ``batched_nms`` for every image, limited to the ``limit`` best boxes.

    Args:
        boxes: [B, N, 4], N >= 1.
        scores: [B, N] from 0 to 1; negative where there is no box.
        groups: Group of every box, [B, N]; boxes of different groups do not suppress each other.
        iou_threshold: Overlap above which the box with the lower score is removed.
        limit: Maximum number of boxes per image.
        class_agnostic: Whether to ignore the groups. Defaults to False.

    Returns:
        Indices [B, K] of the boxes in descending order of score, and whether there is a box
        [B, K]. K is the largest number of boxes in an image, at least 1.
    """
    if not class_agnostic:
        # As in mmcv, where the groups are shifted so that they do not overlap.
        highest = torch.where((scores >= 0)[..., None], boxes, 0.).amax(dim=(1, 2))
        shift = groups.to(boxes.dtype) * (highest + 1)[:, None]
        shifted = boxes + shift[..., None]
    else:
        shifted = boxes
    chosen = _NonMaxSuppression.apply(shifted, scores[:, None], limit, float(iou_threshold))
    chosen = chosen[:, 0] * scores.shape[1] + chosen[:, 2]
    scores, absent = scores.flatten(), torch.full_like(scores, -1.)
    kept = absent.flatten().scatter(0, chosen, scores[chosen]).view_as(absent)
    values, index = kept.topk(at_most(limit, kept.shape[1]), dim=1)
    present = values >= 0
    count = present.sum(dim=1).max().clamp(min=1)
    return index[:, :count], present[:, :count]


def at_most(limit: int, size: int) -> int:
    """The smaller of the two; a tensor's ``size`` may be recorded in a trace."""
    if isinstance(size, Tensor):
        return torch.minimum(size, torch.tensor(limit))
    return min(limit, size)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [B, K, ...] of values [B, N, ...] by their indices [B, K]."""
    trailing = values.dim() - 2
    index = index.reshape(index.shape[0], index.shape[1], *(1, ) * trailing)
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


class _RoIAlign(torch.autograd.Function):
    """mmcv's operator, exported as ONNX's."""

    @staticmethod
    def forward(ctx, features: Tensor, boxes: Tensor, image: Tensor, size: Tuple[int, int],
                scale: float, sampling_ratio: int, aligned: bool) -> Tensor:
        from mmcv.ops import roi_align
        with untraced():
            rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)
            return roi_align(features, rois, size, scale, sampling_ratio, 'avg', aligned)

    @staticmethod
    def symbolic(g, features, boxes, image, size: Tuple[int, int], scale: float,
                 sampling_ratio: int, aligned: bool):
        return g.op(
            'RoiAlign', features, boxes, image, output_height_i=size[0], output_width_i=size[1],
            spatial_scale_f=scale, sampling_ratio_i=sampling_ratio, mode_s='avg',
            coordinate_transformation_mode_s='half_pixel' if aligned else 'output_half_pixel')


def roi_align(layer, features: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
    """mmcv's RoIAlign layer, only with averages.

    Args:
        layer (mmcv.ops.RoIAlign): With its size, scale and sampling.
        features: [B, C, H, W].
        boxes: [R, 4] in pixels of the image.
        image: Index of the image to which each box belongs, int64 [R].

    Returns:
        [R, C, *output_size].
    """
    return _RoIAlign.apply(features, boxes, image, tuple(layer.output_size), layer.spatial_scale,
                           max(layer.sampling_ratio, 0), layer.aligned)


class _LocalAggregation(torch.autograd.Function):
    """This package's operator, exported as that of its library for onnxruntime."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, geometry: Geometry, channels: int) -> Tensor:
        with untraced():
            return aggregate_standard(x, w, geometry)

    @staticmethod
    def symbolic(g, x, w, geometry: Geometry, channels: int):
        kernel_size, stride, padding, dilation, interleaved = geometry
        y = g.op(f'{DOMAIN}::LocalAggregation', x, w, kernel_size_i=kernel_size, stride_i=stride,
                 padding_i=padding, dilation_i=dilation, interleaved_i=int(interleaved))
        # Otherwise the exporter treats the sizes of the trace as constants.
        return y.setType(x.type().with_sizes([None, channels, None, None]))


def aggregate_in_onnxruntime(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """The aggregation, one operator ``mmcontext::LocalAggregation`` in an exported graph."""
    return _LocalAggregation.apply(x, w, geometry, int(x.shape[1]))


def _hat_weights(low: Tensor, high: Tensor, length: int, cells: int) -> Tensor:
    pixels = torch.arange(length, device=low.device) + 0.5
    position = (pixels - low[:, None]) / (high - low)[:, None] * cells - 0.5
    distance = (position[..., None] - torch.arange(cells, device=low.device)).abs()
    return (1 - distance).clamp(min=0)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks of boxes, pasted into the image bilinearly, as in mmdet on a GPU.

    The interpolation is separable: two matrix products instead of a sampling grid. A box
    without area gets an empty mask.

    Args:
        masks: [R, h, w].
        boxes: [R, 4] in pixels of the image.
        height, width: Size of the image.

    Returns:
        [R, height, width]; 0 outside of the boxes.
    """
    rows = _hat_weights(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
    columns = _hat_weights(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _bin_weights(length: int, bins: int, like: Tensor) -> Tensor:
    numbers = torch.arange(bins, device=like.device)
    low = torch.div(numbers * length, bins, rounding_mode='floor')
    high = torch.div((numbers + 1) * length + bins - 1, bins, rounding_mode='floor')
    position = torch.arange(length, device=like.device)
    inside = (position >= low[:, None]) & (position < high[:, None])
    return inside.to(like.dtype) / (high - low)[:, None].to(like.dtype)


def adaptive_avg_pool2d(x: Tensor, output_size) -> Tensor:
    """torch's function for inputs of any size; ONNX only has it for an output of one cell.

    Args:
        x: [..., H, W].
        output_size (int | tuple): Cells; None for those of the input.

    Returns:
        [..., *output_size].
    """
    sizes = (output_size, ) * 2 if isinstance(output_size, int) else tuple(output_size)
    rows, columns = (given if given is not None else size
                     for given, size in zip(sizes, x.shape[-2:]))
    if (rows, columns) == (1, 1):
        return spatial_mean(x)
    return (_bin_weights(x.shape[-2], rows, x) @ x
            @ _bin_weights(x.shape[-1], columns, x).transpose(0, 1))


def upsample(self, x: Tensor) -> Tensor:
    """``forward`` of mmseg's ``Upsample``, whose own makes the size constant in a trace."""
    size = self.size or [(side * self.scale_factor).long() if isinstance(side, Tensor) else
                         int(side * self.scale_factor) for side in x.shape[-2:]]
    return F.interpolate(x, size, None, self.mode, self.align_corners)


@contextlib.contextmanager
def exportable(own_operators: bool = False) -> Iterator[None]:
    """Context in which networks use operators that exporters support, for inputs of any size.

    Args:
        own_operators: Whether the aggregation is one operator, from this package's library for
            onnxruntime. Defaults to False.
    """
    replaced = [(F, 'adaptive_avg_pool2d', adaptive_avg_pool2d)]
    mmseg = sys.modules.get('mmseg.models.utils.wrappers')
    if mmseg is not None:
        replaced.append((mmseg.Upsample, 'forward', upsample))
    originals = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, stand_in in replaced:
        setattr(owner, name, stand_in)
    try:
        with standard_operators(
                aggregate_in_onnxruntime if own_operators else aggregate_standard):
            yield
    finally:
        for (owner, name, _), original in zip(replaced, originals):
            setattr(owner, name, original)
