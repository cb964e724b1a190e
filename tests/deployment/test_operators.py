"""Replacements of upstream functions, compared with them on random input."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import DOUBLE, SINGLE_LAYERS, assert_close, assert_near
from torch import nn

from mmcontext.deployment.operators import (
    adaptive_avg_pool2d,
    exportable,
    keep_best,
    paste_masks,
)
from mmcontext.layers import CVolution2d

pytest.importorskip('mmdet')
from mmcv.ops import batched_nms  # noqa: E402
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask  # noqa: E402
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor  # noqa: E402

from mmcontext.deployment.detection import extract_regions  # noqa: E402


def _boxes(count: int, *batch: int) -> torch.Tensor:
    corner = torch.rand(*batch, count, 2) * 60
    return torch.cat([corner, corner + torch.rand(*batch, count, 2) * 60 + 1], dim=-1)


def _run(module: nn.Module, example: tuple, inputs: tuple, path: str, axes: dict) -> list:
    """Outputs of a module that was exported with different inputs."""
    onnxruntime = pytest.importorskip('onnxruntime')
    options = dict(dynamo=False) if torch.__version__ >= (2, 5) else {}
    with exportable(), torch.no_grad():
        torch.onnx.export(module.eval(), example, path, input_names=list(axes), opset_version=17,
                          dynamic_axes=axes, **options)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return session.run(None, dict(zip(axes, (value.numpy() for value in inputs))))


class _KeepBest(nn.Module):
    def forward(self, boxes, scores, groups):
        return keep_best(boxes, scores, groups, 0.5, 30)


def _expected(boxes, scores, groups) -> list:
    present = (scores > 0).nonzero().flatten()
    kept = batched_nms(boxes[present], scores[present], groups[present],
                       dict(type='nms', iou_threshold=0.5))[1]
    return present[kept[:30]].tolist()


@pytest.mark.filterwarnings('ignore')
def test_suppression_is_that_of_mmcv(tmp_path):
    boxes, groups = _boxes(80, 3), torch.randint(0, 3, (3, 80))
    scores = torch.rand(3, 80)
    scores[1, 10:] = -1  # an image with few boxes
    scores[2] = -1  # and one with none
    axes = {'boxes': {0: 'b', 1: 'n'}, 'scores': {0: 'b', 1: 'n'}, 'groups': {0: 'b', 1: 'n'}}
    exported = _run(_KeepBest(), (boxes[:2, :50], scores[:2, :50], groups[:2, :50]),
                    (boxes, scores, groups), str(tmp_path / 'nms.onnx'), axes)
    for index, present in ((torch.from_numpy(part) for part in exported),
                           _KeepBest()(boxes, scores, groups)):
        assert index.shape == present.shape and index.shape[1] <= 30
        assert not present[2].any()
        for image in range(2):
            assert index[image][present[image]].tolist() == _expected(
                boxes[image], scores[image], groups[image])
    none = _KeepBest()(boxes[2:], scores[2:], groups[2:])[1]
    assert none.shape == (1, 1) and not none.any()


class _Regions(nn.Module):
    def __init__(self, extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, rois, *features):
        return extract_regions(self.extractor, features, rois)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('aligned', [True, False])
def test_regions_are_those_of_mmdet(aligned, tmp_path):
    extractor = SingleRoIExtractor(dict(type='RoIAlign', output_size=3, aligned=aligned), 2,
                                   [4, 8], finest_scale=14)

    def inputs(batch: int, count: int) -> tuple:
        image = torch.randint(0, batch, (count, 1)).float()
        return (torch.cat([image, _boxes(count)], dim=1),
                torch.randn(batch, 2, 24, 32), torch.randn(batch, 2, 12, 16))

    given = inputs(3, 40)
    expected = extractor(given[1:], given[0])
    assert_close(_Regions(extractor)(*given), expected)
    names = {'rois': {0: 'r'}, 'fine': {0: 'b'}, 'coarse': {0: 'b'}}
    actual, = _run(_Regions(extractor), inputs(2, 30), given, str(tmp_path / 'roi.onnx'), names)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-5)  # float32


def test_masks_are_pasted_as_by_mmdet():
    masks, boxes = torch.rand(6, 7, 9), _boxes(6)
    expected, _ = _do_paste_mask(masks[:, None], boxes, 70, 90, skip_empty=False)
    assert_close(paste_masks(masks, boxes, 70, 90), expected, SINGLE_LAYERS)
    empty = torch.tensor([[5., 5., 5., 20.]])
    assert not (paste_masks(masks[:1], empty, 70, 90) > 0).any()


@pytest.mark.parametrize('size', [1, 9, (3, 2), (None, 4)])
def test_pooling_is_that_of_torch(size):
    x = torch.randn(2, 3, 13, 7, dtype=torch.float64)
    assert_close(adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(x, size), DOUBLE)


class _Gate(CVolution2d):
    forward = CVolution2d.gate_values


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('module', [
    nn.AdaptiveAvgPool2d(1), _Gate(16), _Gate(16, kernel_size=3)])
def test_means_of_large_maps_are_as_exact_as_in_torch(module, tmp_path):
    for parameter in module.parameters():
        parameter.data.abs_()
    x = torch.rand(1, 16, 256, 320)
    actual, = _run(module, (x, ), (x, ), str(tmp_path / 'mean.onnx'), {'x': {}})
    with torch.no_grad():
        exact = module.double()(x.double())
    assert_near(torch.from_numpy(actual), exact, 1e-6)  # a plain mean: up to 1e-5


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('factor', [2, 1.5])
def test_upsampling_of_mmseg_follows_the_size(factor, tmp_path):
    module = pytest.importorskip('mmseg.models.utils').Upsample(
        scale_factor=factor, mode='bilinear', align_corners=False)
    x = torch.randn(1, 2, 5, 9)
    actual, = _run(module, (torch.randn(1, 2, 4, 6), ), (x, ), str(tmp_path / 'up.onnx'),
                   {'x': {0: 'b', 2: 'h', 3: 'w'}})
    np.testing.assert_allclose(actual, module(x).numpy(), rtol=1e-5, atol=1e-5)  # as SINGLE
