"""Whole detectors with operators in backbone, neck and heads."""
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

CONFIG = Path(__file__).parents[2] / 'configs/cednet/mask_rcnn_cednet50_neck_fpn_head_1x_coco.py'
BACKBONES = {
    'CoConv2d': dict(type='mmcontext.CoResNet', depth=50, base_channels=8),
    'PyConv2d': dict(type='mmcontext.PyConvResNet', depth=18),
    'CoT2d': dict(type='mmcontext.CoTNet', depth=50, base_channels=16),
    'Involution2d': dict(type='mmcontext.RedNet', depth=26, base_channels=32),
    'CVolution2d': dict(type='mmcontext.CedNet', depth=26, base_channels=32),
}
CONTEXT = {
    'CoConv2d': dict(bias=True), 'PyConv2d': dict(bias=True, levels=2), 'CoT2d': {},
    'Involution2d': {}, 'CVolution2d': dict(gate_groups=4),
}


@pytest.fixture(autouse=True)
def scope():
    register_all_modules(init_default_scope=True)


def mask_rcnn(operator='CVolution2d', channels=16, **backbone):
    """A narrow Mask R-CNN with two classes."""
    context_cfg = dict(type=f'mmcontext.{operator}', **CONTEXT[operator])
    backbone = {**BACKBONES[operator], 'out_indices': (0, 1, 2, 3), **backbone}
    torch.manual_seed(0)
    with torch.no_grad():
        widths = [f.shape[1] for f in MODELS.build(backbone).eval()(torch.zeros(1, 3, 32, 32))]
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(dict(model=dict(
        neck=dict(in_channels=widths, out_channels=channels,
                  context_cfg=context_cfg),
        rpn_head=dict(in_channels=channels,
                      feat_channels=channels, context_cfg=context_cfg),
        roi_head=dict(
            bbox_roi_extractor=dict(out_channels=channels),
            bbox_head=dict(type='mmcontext.ContextConvFCBBoxHead', context_cfg=context_cfg,
                           num_shared_convs=1, in_channels=channels, conv_out_channels=channels,
                           fc_out_channels=16, num_classes=2),
            mask_roi_extractor=dict(out_channels=channels),
            mask_head=dict(context_cfg=context_cfg, num_convs=1, in_channels=channels,
                           conv_out_channels=channels, num_classes=2)),
        train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20),
                       rcnn=dict(sampler=dict(num=16))),
        test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20),
                      rcnn=dict(score_thr=0.0, max_per_img=5)))))
    cfg.model.backbone = backbone
    # merge_from_dict merges the operator into that of the config
    for part in (cfg.model.neck, cfg.model.rpn_head, cfg.model.roi_head.mask_head):
        part.context_cfg = context_cfg
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def sample(height, width, boxes=((4, 4, 20, 24), )):
    """An image and its objects; without boxes, an image without objects."""
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    data = DetDataSample(metainfo=dict(
        img_shape=(height, width), ori_shape=(height, width), scale_factor=(1., 1.), img_id=0))
    masks = np.zeros((len(boxes), height, width), dtype=np.uint8)
    for mask, (x, y, x2, y2) in zip(masks, boxes):
        mask[y:y2, x:x2] = 1
    data.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.long),
        masks=BitmapMasks(masks, height, width))
    return image, data


def batch(*samples):
    images, data = zip(*samples)
    return dict(inputs=list(images), data_samples=list(data))


@pytest.mark.parametrize('operator', CONTEXT)
def test_every_operator_everywhere_trains(operator):
    model = mask_rcnn(operator).train()
    data = model.data_preprocessor(batch(sample(64, 48), sample(48, 64)), True)
    total, losses = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_frozen_stages_stay_to_the_bit():
    """frozen_stages=1 with norm_eval=True, over 20 iterations with momentum and weight decay."""
    model = mask_rcnn(frozen_stages=1, norm_eval=True).train()
    backbone = model.backbone
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()
              if name.startswith(('stem.', 'layer1.')) or 'running' in name or 'num_b' in name}
    moving = {name: p.clone() for name, p in backbone.named_parameters() if p.requires_grad}
    assert frozen and moving and not any(n.startswith(('stem.', 'layer1.')) for n in moving)
    wrapper = OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-2),
        clip_grad=dict(max_norm=5))
    for _ in range(20):
        model.train()
        model.train_step(batch(sample(72, 72)), wrapper)
    state = backbone.state_dict()
    for name, value in frozen.items():
        assert torch.equal(state[name], value), name
    assert all(not torch.equal(state[name], value) for name, value in moving.items())


@pytest.mark.parametrize('operator', CONTEXT)
@pytest.mark.parametrize('sizes', [
    [(33, 47)], [(1, 1)], [(32, 32)], [(33, 47), (64, 20), (5, 90)]], ids=str)
def test_odd_tiny_and_mixed_sizes_at_inference(operator, sizes):
    model = mask_rcnn(operator).eval()
    with torch.no_grad():
        results = model.test_step(batch(*(sample(*size, boxes=()) for size in sizes)))
    for (height, width), result in zip(sizes, results):
        found = result.pred_instances
        assert found.masks.shape == (len(found), height, width)
        assert found.bboxes.isfinite().all() and found.scores.isfinite().all()
        assert (found.bboxes >= 0).all()
        assert (found.bboxes[:, 2] <= width).all() and (found.bboxes[:, 3] <= height).all()


def test_images_without_object_train_and_leave_statistics_finite():
    model = mask_rcnn().train()
    data = model.data_preprocessor(batch(sample(40, 40, ()), sample(40, 33, ())), True)
    total, losses = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert total.isfinite() and losses['loss_mask'] == 0 and losses['loss_bbox'] == 0
    assert all(value.isfinite().all() for value in model.state_dict().values())
    # DistributedDataParallel waits for the gradient of every parameter.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_no_proposal_at_inference():
    model = mask_rcnn().eval()
    with torch.no_grad():
        model.rpn_head.test_cfg.min_bbox_size = 1000
        result = model.test_step(batch(sample(40, 40, ())))[0]
    assert len(result.pred_instances) == 0
