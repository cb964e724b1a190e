"""The modern recipes run: two iterations of narrow networks with their own pipelines.

Here with one network per recipe; ``classify`` and ``detect`` accept any of the configs and images.
"""
import json
import math
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from common import ROOT
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

CLASSIFIERS = sorted(ROOT.glob('configs/*/*_rsb-a[23]_imagenet.py'))
DETECTORS = sorted(ROOT.glob('configs/*/*_ms_3x_adamw_coco.py'))
TRAINED = [ROOT / f'configs/{name}' for name in (
    'coconv/coresnet50_rsb-a2_imagenet.py', 'cotnet/cotnet50_rsb-a3_imagenet.py',
    'rednet/mask_rcnn_rednet50_fpn_ms_3x_adamw_coco.py')]
# Width of the first stage; PyConv cannot be narrower.
WIDTHS = dict(coresnet50=16, cotnet50=16, rednet50=32, cednet50=32, ckresnet50=16, resnet50=16)


def two_losses(cfg, width):
    """Losses of two iterations."""
    model_cfg = cfg.model
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in model_cfg:
        model_cfg.data_preprocessor = cfg.data_preprocessor
    if width:
        model_cfg.backbone.base_channels = width
    torch.manual_seed(0)
    np.random.seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(model_cfg)).train()
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        losses = [model.train_step(data, wrapper)['loss'].item() for data in islice(loader, 2)]
    after = [p for p in model.parameters() if p.requires_grad]
    moved = sum(not torch.equal(a, b) for a, b in zip(before, after))
    assert moved > 0.9 * len(after)
    return losses


def classify(path, data_root):
    """Two iterations of a classifier on an ImageNet-like folder."""
    cfg = Config.fromfile(path)
    width = WIDTHS.get(path.stem.split('_')[0])
    if width:
        if cfg.model.backbone.type == 'ResNet':
            cfg.model.backbone.stem_channels = width
        cfg.model.head.in_channels = 32 * width
    loader = cfg.train_dataloader
    loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    loader.dataset.update(type='CustomDataset', data_root=str(data_root), data_prefix='')
    loader.dataset.pop('split')
    return two_losses(cfg, width)


def detect(path, data_root, ann_file, shrink=1):
    """Two iterations of a detector on a COCO-like folder, sizes divided by ``shrink``."""
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    width = WIDTHS[path.stem.split('_')[2]]
    cfg.model.neck.in_channels = [width * 4 * 2**i for i in range(4)]
    loader = cfg.train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader.dataset.update(data_root=str(data_root), ann_file=ann_file, data_prefix=dict(img=''))
    resize = loader.dataset.pipeline[2]
    resize.scales = [(w // shrink, h // shrink) for w, h in resize.scales]
    return two_losses(cfg, width)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    random = np.random.RandomState(0)
    images, boxes = [], []
    for i in range(8):
        path = folder / str(i % 2) / f'{i}.jpg'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), random.randint(0, 256, (120, 160, 3), dtype=np.uint8))
        images.append(dict(id=i, file_name=f'{i % 2}/{i}.jpg', height=120, width=160))
        boxes.append(dict(
            id=i, image_id=i, category_id=1, iscrowd=0, area=4800, bbox=[20, 20, 80, 60],
            segmentation=[[20, 20, 100, 20, 100, 80, 20, 80]]))
    (folder / 'boxes.json').write_text(json.dumps(dict(
        images=images, annotations=boxes, categories=[dict(id=1, name='person')])))
    return folder


@pytest.mark.parametrize('path', TRAINED[:2], ids=lambda path: path.stem)
def test_classifier_trains(path, photos):
    pytest.importorskip('mmpretrain')
    losses = classify(path, photos)
    # Initial binary cross-entropy, which mmpretrain sums over the 1000 classes.
    assert losses[0] == pytest.approx(1000 * math.log(2), rel=0.15)
    assert math.isfinite(losses[1])


@pytest.mark.parametrize('path', TRAINED[2:], ids=lambda path: path.stem)
def test_detector_trains(path, photos):
    pytest.importorskip('mmdet')
    losses = detect(path, photos, 'boxes.json', shrink=8)
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


@pytest.mark.parametrize('path', CLASSIFIERS, ids=lambda path: path.stem)
def test_recipe_of_resnet_strikes_back(path):
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(path)
    a3 = '_rsb-a3_' in path.stem
    _, crop, _, augment, _ = cfg.train_dataloader.dataset.pipeline
    assert crop.scale == (160 if a3 else 224)
    assert (augment.magnitude_level, augment.magnitude_std) == (6 if a3 else 7, 0.5)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == 236
    assert cfg.train_dataloader.sampler.type == ('DefaultSampler' if a3 else 'RepeatAugSampler')
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == (100 if a3 else 300)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == (
        'Lamb', 0.008 if a3 else 0.005, 0.02)
    assert cfg.model.backbone.get('drop_path_rate', 0) == (0 if a3 else 0.05)
    assert cfg.model.head.get('dropout', 0) == 0 and cfg.model.head.loss.use_sigmoid
    assert [(a.type, a.alpha) for a in cfg.model.train_cfg.augments] == [
        ('Mixup', 0.1), ('CutMix', 1.0)]


@pytest.mark.parametrize('path', DETECTORS, ids=lambda path: path.stem)
def test_recipe_of_the_detectors(path):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(path)
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert resize.type == 'RandomChoiceResize'
    assert resize.scales == [(1333, short) for short in range(480, 801, 32)]
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 36
    assert cfg.param_scheduler[1].milestones == [27, 33]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
