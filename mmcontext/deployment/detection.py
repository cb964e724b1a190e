"""Detectors of mmdet in a form that can be traced: whole batches, no branches on values.

The heads' own layers, priors and box coders are used through their public methods. The steps
after them run image by image in mmdet; here they are written for the batch.
"""
from typing import List, NamedTuple, Sequence, Tuple

import torch
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from mmcontext.deployment.operators import (
    at_most,
    gather_rows,
    keep_best,
    paste_masks,
    roi_align,
)
from mmcontext.utils.errors import UserError


class Boxes(NamedTuple):
    """Boxes of a batch, in descending order of score.

    Attributes:
        boxes: [B, K, 4], x1, y1, x2, y2 in pixels.
        scores: [B, K].
        labels: [B, K].
        present: Whether there is a box, [B, K].
    """
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    present: Tensor


def _inherits(obj, base: type, *methods: str) -> bool:
    """Whether an object's methods are those of a class of mmdet."""
    return isinstance(obj, base) and all(
        getattr(type(obj), name) is getattr(base, name) for name in methods)


def _require(condition: bool, what: str, got: object) -> None:
    if not condition:
        raise UserError(f'a detector is exported with {what}, got {type(got).__name__}')


def _check_nms(cfg: dict, name: str) -> None:
    nms = dict(cfg.get('nms') or {})
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if nms.get('type', 'nms') != 'nms' or 'iou_threshold' not in nms or set(nms) - known:
        raise UserError(f'NonMaxSuppression of ONNX cannot do {name}.nms={nms}; of '
                        "dict(type='nms', iou_threshold=..., class_agnostic=...) it can")
    if cfg.get('max_per_img', 0) < 1:
        raise UserError(f'{name}.max_per_img must be at least 1, got {cfg.get("max_per_img")}')


def check_detector(detector: nn.Module) -> None:
    """Check that a detector is of a kind supported by :class:`Detections`.

    Raises:
        UserError: It is not, in one sentence.
    """
    if isinstance(detector, TwoStageDetector):
        _check_two_stage(detector)
        return
    _require(_inherits(detector, SingleStageDetector, 'predict', 'extract_feat'),
             'one or two stages of mmdet', detector)
    _require(_inherits(detector.bbox_head, BaseDenseHead, 'predict', 'predict_by_feat',
                       '_predict_by_feat_single', '_bbox_post_process'),
             "a head that predicts as mmdet's BaseDenseHead does", detector.bbox_head)
    _check_nms(detector.test_cfg, 'test_cfg')


def _check_two_stage(detector: nn.Module) -> None:
    _require(_inherits(detector, TwoStageDetector, 'predict', 'extract_feat'),
             'the two stages of mmdet', detector)
    _require(_inherits(detector.rpn_head, RPNHead, 'predict', 'predict_by_feat',
                       '_predict_by_feat_single', '_bbox_post_process'),
             "mmdet's RPNHead", detector.rpn_head)
    head = detector.roi_head
    kind = CascadeRoIHead if isinstance(head, CascadeRoIHead) else StandardRoIHead
    methods = ['predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward']
    if kind is CascadeRoIHead:
        methods.append('_refine_roi')
    _require(_inherits(head, kind, *methods) and not head.with_shared_head,
             "mmdet's StandardRoIHead or CascadeRoIHead without a shared head", head)
    for part in _stages(head.bbox_head):
        _require(_inherits(part, BBoxHead, 'predict_by_feat', '_predict_by_feat_single',
                           'regress_by_class') and not part.custom_cls_channels
                 and not part.custom_activation and part.with_cls and part.with_reg,
                 "a box head that predicts as mmdet's BBoxHead does", part)
    extractors = [*_stages(head.bbox_roi_extractor)]
    if head.with_mask:
        extractors += _stages(head.mask_roi_extractor)
        for part in _stages(head.mask_head):
            _require(_inherits(part, FCNMaskHead, 'predict_by_feat', '_predict_by_feat_single'),
                     "a mask head that predicts as mmdet's FCNMaskHead does", part)
    for part in extractors:
        _require(_inherits(part, SingleRoIExtractor, 'forward'), "mmdet's SingleRoIExtractor",
                 part)
        for layer in part.roi_layers:
            _require(isinstance(layer, RoIAlign) and layer.pool_mode == 'avg',
                     'a RoIAlign of averages', layer)
    _check_nms(detector.test_cfg.rpn, 'test_cfg.rpn')
    _check_nms(detector.test_cfg.rcnn, 'test_cfg.rcnn')


def _stages(parts) -> Sequence[nn.Module]:
    return list(parts) if isinstance(parts, nn.ModuleList) else [parts]


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] clipped at the borders of images whose heights and widths are [B, 2]."""
    limits = sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limits)


def _decode(coder: nn.Module, priors: Tensor, deltas: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] from priors and deltas of [B, N, ...]."""
    boxes = coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1), max_shape=None)
    boxes = boxes.view(deltas.shape[0], -1, 4)
    return clip(boxes, sizes) if coder.clip_border else boxes


def dense_boxes(head: BaseDenseHead, features: Sequence[Tensor], sizes: Tensor, cfg: dict,
                region_proposals: bool = False) -> Boxes:
    """The results of a dense head's ``predict``, for a whole batch.

    Args:
        head: Head of one stage, or a region proposal head.
        features: Levels, [B, C, H_i, W_i].
        sizes: Heights and widths of the images without padding, [B, 2].
        cfg: The head's ``test_cfg``.
        region_proposals: Whether all scores pass and NMS is per level, not per class, as in an
            ``RPNHead``. Defaults to False.

    Returns:
        The best boxes.
    """
    outputs = head(features)
    scores, deltas = outputs[:2]
    factors = outputs[2] if len(outputs) > 2 else [None] * len(scores)
    priors = head.prior_generator.grid_priors(
        [level.shape[-2:] for level in scores], dtype=scores[0].dtype, device=scores[0].device)
    threshold = -1. if region_proposals else cfg.get('score_thr', 0)
    levels = [_candidates(head, *level, cfg.get('nms_pre', -1), threshold)
              for level in zip(scores, deltas, factors, priors)]
    if region_proposals:
        groups = [torch.full_like(level[1], number) for number, level in enumerate(levels)]
    else:
        groups = [level[1] for level in levels]
    scores, labels, deltas, priors = (torch.cat(parts, dim=1) for parts in zip(*levels))
    boxes = _decode(head.bbox_coder, priors, deltas, sizes)
    if cfg.get('min_bbox_size', -1) >= 0:
        wide = boxes[..., 2:] - boxes[..., :2] > cfg['min_bbox_size']
        scores = torch.where(wide[..., 0] & wide[..., 1], scores, -1.)
    index, present = keep_best(
        boxes, scores, torch.cat(groups, dim=1), cfg['nms']['iou_threshold'], cfg['max_per_img'],
        cfg['nms'].get('class_agnostic', False))
    return Boxes(*(gather_rows(part, index) for part in (boxes, scores, labels)), present)


def _candidates(head: BaseDenseHead, scores: Tensor, deltas: Tensor, factor: Tensor,
                priors: Tensor, limit: int, threshold: float) -> Tuple[Tensor, ...]:
    """Scores, labels, deltas and priors of a level's best ``limit`` pairs of prior and class.

    Scores that do not pass the threshold are -1.
    """
    def rows(x: Tensor, columns: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)

    scores = rows(scores, head.cls_out_channels)
    scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
    classes = scores.shape[2]
    scores = scores.flatten(1)
    if threshold >= 0:
        scores = torch.where(scores > threshold, scores, -1.)
    if limit > 0:
        scores, best = scores.topk(at_most(limit, scores.shape[1]), dim=1)
    else:
        best = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    prior = torch.div(best, classes, rounding_mode='floor')
    if factor is not None:
        factor = rows(factor, 1).sigmoid().squeeze(2).gather(1, prior)
        scores = torch.where(scores < 0, scores, scores * factor)
    priors = priors.expand(scores.shape[0], -1, -1)
    return (scores, best - prior * classes,
            gather_rows(rows(deltas, head.bbox_coder.encode_size), prior),
            gather_rows(priors, prior))


def extract_regions(extractor: SingleRoIExtractor, features: Sequence[Tensor],
                    rois: Tensor) -> Tensor:
    """``forward`` of mmdet's extractor.

    Args:
        extractor: The module.
        features: Levels, [B, C, H_i, W_i].
        rois: [R, 5], index of the image and box.

    Returns:
        [R, C, *size].
    """
    image, boxes = rois[:, 0].long(), rois[:, 1:]
    if len(features) == 1:
        return roi_align(extractor.roi_layers[0], features[0], boxes, image)
    levels = extractor.map_roi_levels(rois, len(features))
    members = [(levels == level).nonzero().flatten() for level in range(len(features))]
    regions = torch.cat([
        roi_align(layer, level, boxes[chosen], image[chosen])
        for layer, level, chosen in zip(extractor.roi_layers, features, members)])
    # Back to the order of the boxes.
    return regions[torch.cat(members).argsort()]


def _rois(boxes: Tensor) -> Tensor:
    """[B, K, 4] -> [B * K, 5]."""
    image = torch.arange(boxes.shape[0], device=boxes.device).to(boxes.dtype)
    image = image[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat([image, boxes], dim=2).flatten(0, 1)


class Detections(nn.Module):
    """A detector with the results of its ``predict``, for any image size and batch size.

    Args:
        detector: A detector of mmdet.
        masks: 'image' for masks of the images' size, 'box' for probabilities within the box.
            Defaults to 'image'.

    Shape:
        - images [B, 3, H, W], normalised and padded; sizes [B, 2], heights and widths of the
          images without padding; mask_size, height and width of 'image' masks.
        - boxes [B, K, 4] in pixels, scores [B, K] (0 where there is no box), labels [B, K] (-1
          where there is no box), and with a mask head masks: [B, K, *mask_size], bool, or
          [B, K, h, w]. K is the largest number of boxes in an image, at least 1.

    Raises:
        UserError: See :func:`check_detector`.
    """

    def __init__(self, detector: nn.Module, masks: str = 'image') -> None:
        super().__init__()
        check_detector(detector)
        self.detector = detector
        self.masks = masks
        self.two_stages = isinstance(detector, TwoStageDetector)
        self.with_mask = self.two_stages and detector.roi_head.with_mask

    def forward(self, images: Tensor, sizes: Tensor, mask_size: Sequence[int]) -> tuple:
        features = self.detector.extract_feat(images)
        if self.two_stages:
            found = self._second_stage(features, sizes)
        else:
            found = dense_boxes(self.detector.bbox_head, features, sizes, self.detector.test_cfg)
        results = [found.boxes, torch.where(found.present, found.scores, 0.),
                   torch.where(found.present, found.labels, -1)]
        if self.with_mask:
            results.append(self._masks(features, found, mask_size))
        return tuple(results)

    def _second_stage(self, features: Sequence[Tensor], sizes: Tensor) -> Boxes:
        head, cfg = self.detector.roi_head, self.detector.test_cfg
        proposals = dense_boxes(self.detector.rpn_head, features, sizes, cfg.rpn, True)
        boxes, total = proposals.boxes, 0.
        parts = list(zip(_stages(head.bbox_head), _stages(head.bbox_roi_extractor)))
        for stage, (bbox_head, extractor) in enumerate(parts):
            regions = extract_regions(extractor, features[:extractor.num_inputs], _rois(boxes))
            logits, deltas = bbox_head(regions)
            total = total + logits
            if stage + 1 < len(parts):
                boxes = bbox_head.regress_by_class(
                    boxes.flatten(0, 1), logits[:, :-1].argmax(dim=1), deltas,
                    dict(img_shape=None)).view_as(proposals.boxes)
                if bbox_head.bbox_coder.clip_border:
                    boxes = clip(boxes, sizes)
        scores = (total / len(parts)).softmax(-1)[:, :-1]
        scores = scores.view(*boxes.shape[:2], -1)
        passed = (scores > cfg.rcnn.score_thr) & proposals.present[..., None]
        return self._best(bbox_head, boxes, torch.where(passed, scores, -1.), deltas, sizes)

    def _best(self, bbox_head: BBoxHead, boxes: Tensor, scores: Tensor, deltas: Tensor,
              sizes: Tensor) -> Boxes:
        """The boxes that remain, over all regions and classes, of boxes [B, P, 4], scores
        [B, P, C] and the last head's deltas."""
        cfg, classes = self.detector.test_cfg.rcnn, scores.shape[2]
        boxes = boxes[:, :, None]
        if not bbox_head.reg_class_agnostic:
            boxes = boxes.expand(-1, -1, classes, -1)
        boxes = boxes.flatten(1, 2)
        boxes = _decode(bbox_head.bbox_coder, boxes, deltas.view_as(boxes), sizes)
        if bbox_head.reg_class_agnostic:
            boxes = boxes[:, :, None].expand(-1, -1, classes, -1).flatten(1, 2)
        labels = torch.arange(classes, device=scores.device).expand_as(scores).flatten(1)
        scores = scores.flatten(1)
        index, present = keep_best(boxes, scores, labels, cfg.nms.iou_threshold, cfg.max_per_img,
                                   cfg.nms.get('class_agnostic', False))
        return Boxes(*(gather_rows(part, index) for part in (boxes, scores, labels)), present)

    def _masks(self, features: Sequence[Tensor], found: Boxes, size: Sequence[int]) -> Tensor:
        head = self.detector.roi_head
        rois, labels = _rois(found.boxes), found.labels.flatten()
        heads: List[FCNMaskHead] = _stages(head.mask_head)
        extractors = _stages(head.mask_roi_extractor)
        masks = 0.
        for mask_head, extractor in zip(heads, extractors):
            regions = extract_regions(extractor, features[:extractor.num_inputs], rois)
            masks = masks + mask_head(regions).sigmoid()
        masks = masks / len(heads)
        if heads[-1].class_agnostic:
            masks = masks[:, 0]
        else:
            masks = masks[torch.arange(masks.shape[0], device=masks.device), labels]
        if self.masks == 'image':
            masks = paste_masks(masks, rois[:, 1:], *size)
            masks = masks >= self.detector.test_cfg.rcnn.mask_thr_binary
            masks = masks & found.present.flatten()[:, None, None]
        return masks.view(*found.present.shape, *masks.shape[1:])
