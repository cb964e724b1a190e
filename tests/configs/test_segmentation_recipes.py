"""The published recipe of PyConvSegNet, and the results of its pipelines."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

pytest.importorskip('mmseg')

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DEPTHS = (50, 101, 152)


@pytest.mark.parametrize('backbone, checkpoint', [
    ('resnet', 'torchvision://resnet{}'),
    ('pyconvresnet', 'checkpoints/pyconvresnet{}.pth'),
])
@pytest.mark.parametrize('depth', DEPTHS)
def test_ade20k_recipe(backbone, checkpoint, depth):
    cfg = Config.fromfile(CONFIGS / f'pyconv/pyconvsegnet_{backbone}{depth}_ade20k.py')
    assert cfg.model.backbone.depth == depth
    assert cfg.model.backbone.init_cfg.checkpoint == checkpoint.format(depth)
    if backbone == 'resnet':
        assert cfg.model.backbone.dilations == (1, 1, 2, 4)
        assert cfg.model.backbone.strides == (1, 2, 1, 1)
        assert cfg.model.backbone.contract_dilation is False
    else:
        assert cfg.model.backbone.output_stride == 8

    assert cfg.train_dataloader.batch_size * 4 == cfg.auto_scale_lr.base_batch_size == 16
    iterations = 100 * (20210 // 16)
    assert cfg.train_cfg.max_iters == iterations
    assert iterations % cfg.train_cfg.val_interval == 0
    schedule, = cfg.param_scheduler
    assert (schedule.power, schedule.eta_min, schedule.begin, schedule.end) == (
        0.9, 0, 0, iterations)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        'SGD', 0.01, 0.9, 1e-4)

    heads = cfg.model.decode_head, cfg.model.auxiliary_head
    assert [head.num_classes for head in heads] == [150, 150]
    assert [head.loss_decode.loss_weight for head in heads] == [1.0, 0.4]
    assert all(head.align_corners and head.loss_decode.avg_non_ignore for head in heads)
    assert cfg.model.decode_head.dropout_ratio == 0.1
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(473, 473), stride=(315, 315))
    assert {key: value.lr_mult for key, value in cfg.optim_wrapper.paramwise_cfg.custom_keys.items()
            } == dict(decode_head=10, auxiliary_head=10)
    scales, flips = cfg.tta_pipeline[-1].transforms[:2]
    assert [step.scale for step in scales] == [
        (512 * r, 512 * r) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
    assert [step.prob for step in flips] == [0, 1]
    assert cfg.tta_model.type == 'SegTTAModel'


@pytest.mark.parametrize('backbone', ['resnet50', 'pyconvresnet50'])
def test_cityscapes_recipe(backbone):
    cfg = Config.fromfile(CONFIGS / f'pyconv/pyconvsegnet_{backbone}_cityscapes.py')
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 19
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[0].end == 80000
    assert cfg.model.data_preprocessor.size == (769, 769)
    assert (769 - 1) % 8 == 0


def test_ade20k_training_pipeline(tmp_path):
    image = np.full((300, 400, 3), 255, np.uint8)
    # 0 is "other" in the files, 1 to 150 are the classes.
    labels = np.arange(300, dtype=np.uint8)[:, None].repeat(400, 1) % 151
    for folder, suffix, array in (('images', 'jpg', image), ('annotations', 'png', labels)):
        path = tmp_path / folder / 'training'
        path.mkdir(parents=True)
        cv2.imwrite(str(path / f'scene.{suffix}'), array)
    cfg = Config.fromfile(CONFIGS / 'pyconv/pyconvsegnet_resnet50_ade20k.py')
    options = cfg.train_dataloader.dataset
    options.data_root = str(tmp_path)
    for step in options.pipeline:
        if step['type'] == 'RandomRotate':
            assert step['degree'] == 10
            step['prob'] = 1.
        elif step['type'] == 'mmcontext.RandomScale':
            assert step['ratio_range'] == (0.5, 2.0)
            step['ratio_range'] = (0.5, 0.5)
        elif step['type'] == 'RandomCrop':
            assert step['crop_size'] == (473, 473)
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.utils import register_all_modules
        register_all_modules(init_default_scope=False)
        np.random.seed(0)
        sample = DATASETS.build(options)[0]
    pixels, labels = sample['inputs'], sample['data_samples'].gt_sem_seg.data
    assert pixels.shape[1:] == labels.shape[1:]
    assert set(labels.unique().tolist()) <= {*range(150), 255}
    # Corners uncovered by the rotation have the mean pixel (BGR) and no label.
    uncovered = (pixels == torch.tensor([104, 116, 124]).view(3, 1, 1)).all(0)
    assert uncovered.any() and (labels[0][uncovered] == 255).all()
