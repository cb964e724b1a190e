"""Narrow detectors: for a batch the same results as mmdet image by image, exported or not."""
import cv2
import numpy as np
import pytest
import torch
from common import load_tool
from mmengine.config import Config
from mmengine.structures import InstanceData

pytest.importorskip('mmdet')
pytest.importorskip('onnxruntime')
from mmcontext.deployment.checking import compare, image_inputs, match  # noqa: E402
from mmcontext.deployment.graph import build_graph, export  # noqa: E402
from mmcontext.deployment.runtime import OnnxGraph  # noqa: E402
from mmcontext.deployment.untrained import make_decided  # noqa: E402
from mmcontext.utils.errors import UserError  # noqa: E402

_NECK = dict(in_channels=[64, 128, 256, 512], out_channels=16)
_MASK = dict(in_channels=16, conv_out_channels=8, num_convs=1, num_classes=6)


def _box_head(original: dict, **others) -> dict:
    return {**original, **dict(in_channels=16, fc_out_channels=32, num_classes=6), **others}


def _cfg(tmp_path, base: str) -> Config:
    """mmdet's model with one of our backbones, narrow."""
    path = tmp_path / 'narrow.py'
    path.write_text(f"_base_ = 'mmdet::_base_/models/{base}.py'\ndefault_scope = 'mmdet'\n")
    cfg = Config.fromfile(path)
    model = cfg.model
    model.backbone = dict(
        type='mmcontext.CoResNet', depth=50, base_channels=16, out_indices=(0, 1, 2, 3),
        zero_init_residual=True)
    model.neck.update(_NECK)
    if 'rpn_head' not in model:
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=6)
        model.test_cfg.update(nms_pre=60, max_per_img=20)
        return cfg
    head = model.roi_head
    model.rpn_head.update(in_channels=16, feat_channels=16)
    for extractor in (head.bbox_roi_extractor, head.get('mask_roi_extractor')):
        if extractor:
            extractor.out_channels = 16
    head.bbox_head = ([_box_head(part) for part in head.bbox_head]
                      if isinstance(head.bbox_head, list) else _box_head(head.bbox_head))
    if 'mask_head' in head:
        head.mask_head.update(_MASK)
    model.test_cfg.rpn.update(nms_pre=80, max_per_img=60, min_bbox_size=2)
    model.test_cfg.rcnn.update(max_per_img=20)
    return cfg


def _images(batch: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (batch, 6, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (width, height)) for image in coarse])


def _graph(cfg: Config, **options):
    graph = build_graph(cfg, shape=(3, 64, 96), **options)
    inputs = image_inputs(graph, _images(2, 70, 90))
    make_decided(graph.model, lambda: graph.module(*inputs))
    return graph


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('base, options', [
    ('mask-rcnn_r50_fpn', dict(preprocess='in')),
    ('cascade-mask-rcnn_r50_fpn', dict(masks='box')),
    ('retinanet_r50_fpn', dict(preprocess='in')),
])
def test_exported_detector_finds_what_mmdet_finds(base, options, tmp_path):
    cfg = _cfg(tmp_path, base)
    graph, path = _graph(cfg, **options), str(tmp_path / 'model.onnx')
    export(graph, path)
    onnx = OnnxGraph(path)
    for images in (_images(1, 64, 96), _images(3, 90, 75)):
        agreement = compare(graph, onnx, image_inputs(graph, images))
        assert agreement and agreement.found, str(agreement)


def test_detections_without_partners_are_found():
    one = InstanceData(bboxes=torch.tensor([[0., 0., 9., 9.]]), scores=torch.tensor([0.5]),
                       labels=torch.tensor([1]))
    near = InstanceData(bboxes=one.bboxes + 0.01, scores=one.scores, labels=one.labels)
    other = InstanceData(bboxes=one.bboxes, scores=one.scores, labels=one.labels + 1)
    both = InstanceData.cat([one, other])
    assert match(one, near)
    for pair in ((one, other), (both, one), (one, both)):
        assert not match(*pair)


def test_masks_of_boxes_without_area_are_not_compared():
    def found(width: float, filled: bool) -> InstanceData:
        return InstanceData(
            bboxes=torch.tensor([[3., 0., 3 + width, 9.]]), labels=torch.tensor([1]),
            scores=torch.tensor([0.5]), masks=torch.full((1, 9, 9), filled))

    assert match(found(0., True), found(0., False))
    assert not match(found(1., True), found(1., False))


def test_soft_suppression_is_refused(tmp_path):
    cfg = _cfg(tmp_path, 'faster-rcnn_r50_fpn')
    cfg.model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(UserError, match='cannot do test_cfg.rcnn.nms'):
        build_graph(cfg)


@pytest.mark.filterwarnings('ignore')
def test_detector_in_float16_keeps_the_pixels_of_its_boxes(tmp_path):
    quantize_onnx = load_tool('deployment/quantize_onnx.py')
    graph = _graph(_cfg(tmp_path, 'retinanet_r50_fpn'), preprocess='in')
    path, half = str(tmp_path / 'model.onnx'), str(tmp_path / 'half.onnx')
    export(graph, path)
    quantize_onnx.to_fp16(path, half, detector=True)
    quantize_onnx.keep_metadata(path, half)
    images = torch.from_numpy(_images(2, 64, 1300))
    expected, found = OnnxGraph(path)(images), OnnxGraph(half)(images)
    # Above 1024 pixels float16 has only integers.
    far = found['boxes'][(found['boxes'] > 1024) & (found['boxes'] < 1300)]
    assert far.size and (far % 1 != 0).mean() > 0.9
    # float16.
    np.testing.assert_allclose(found['scores'][0, :3], expected['scores'][0, :3], atol=0.02)
