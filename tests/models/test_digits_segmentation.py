"""The digit scenes through mmengine's runner: train, test, test-time augmentation, inferencer."""
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from common import ROOT, load_tool
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

pytest.importorskip('mmseg')

CONFIG = ROOT / 'configs' / 'pyconv' / 'pyconvsegnet_pyconvresnet18_digits.py'
CLASSES = ('background', 'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight',
           'nine')


@pytest.fixture
def scenes(tmp_path):
    load_tool('dataset_converters/digits_scenes.py').write_dataset(
        str(tmp_path / 'scenes'), 'cityscapes', train=4, val=2, size=48)
    return tmp_path / 'scenes'


@pytest.fixture
def config(scenes, tmp_path):
    cfg = Config.fromfile(CONFIG)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.data_root = str(scenes)
        for step in dataset.pipeline:
            if step['type'] == 'Resize':
                step['scale'] = (41, 41)
    cfg.model.data_preprocessor.size = (41, 41)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(tmp_path / 'work')
    return cfg


def label_map(scenes, split, index):
    return scenes / 'gtFine' / split / 'digits' / f'digits_{index:06d}_gtFine_labelTrainIds.png'


def train_dataset(config):
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.utils import register_all_modules
        register_all_modules(init_default_scope=False)
        return DATASETS.build(config.train_dataloader.dataset)


def test_train_test_augment_and_draw(config, scenes, tmp_path):
    runner = Runner.from_cfg(config)
    runner.train()
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    checkpoint = tmp_path / 'work' / 'iter_2.pth'

    config.load_from = str(checkpoint)
    whole = Runner.from_cfg(config).test()
    assert 0 <= whole['mIoU'] <= 100

    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    plain = config.model
    config.model = dict(**config.tta_model, module=plain)
    assert 0 <= Runner.from_cfg(config).test()['mIoU'] <= 100
    config.model = plain

    from mmseg.apis import MMSegInferencer
    config.test_dataloader.dataset.pipeline = config.test_pipeline
    inferencer = MMSegInferencer(config, weights=str(checkpoint), device='cpu')
    image = scenes / 'leftImg8bit' / 'val' / 'digits' / 'digits_000001_leftImg8bit.png'
    result = inferencer(str(image), out_dir=str(tmp_path / 'drawn'), return_vis=True)
    assert result['predictions'].shape == (48, 48)
    assert tuple(inferencer.visualizer.dataset_meta['classes']) == CLASSES
    overlay = cv2.imread(str(tmp_path / 'drawn' / 'vis' / image.name))
    assert overlay.shape == (48, 48, 3)
    assert not np.array_equal(overlay, cv2.imread(str(image)))


def test_labels_are_the_ones_written(config, scenes):
    dataset = train_dataset(config)
    assert len(dataset) == 4 and dataset.metainfo['classes'] == CLASSES
    config.train_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')
    ]
    sample = train_dataset(config)[2]['data_samples']
    written = cv2.imread(str(label_map(scenes, 'train', 2)), cv2.IMREAD_UNCHANGED)
    assert torch.equal(sample.gt_sem_seg.data[0], torch.from_numpy(written).long())


def test_image_without_label_file_is_named(config, scenes):
    missing = label_map(scenes, 'train', 1)
    missing.unlink()
    dataset = train_dataset(config)
    with pytest.raises(FileNotFoundError, match=missing.name):
        dataset[1]


def test_unknown_label_is_named_in_training(config, scenes):
    for index in range(4):
        path = label_map(scenes, 'train', index)
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        labels[:20] = 11
        cv2.imwrite(str(path), labels)
    runner = Runner.from_cfg(config)
    with pytest.raises(ValueError, match=r"digits_00000\d_leftImg8bit.png' holds \[11\]"):
        runner.train()


def test_class_weights_pass_over_unlabelled_pixels():
    from mmcontext.registry import TASK_UTILS
    head = SimpleNamespace(num_classes=3, ignore_index=255)
    cfg = dict(type='ClassWeightSampler', class_weight=[0.25, 1, 2])
    labels = torch.tensor([[[[0, 1], [2, 255]]]])
    weights = TASK_UTILS.build(cfg, default_args=dict(context=head)).sample(
        torch.zeros(1, 3, 2, 2), labels)
    assert weights.tolist() == [[[0.25, 1], [2, 0]]]
    head.num_classes = 4
    with pytest.raises(ValueError, match='class_weight must be 4 numbers'):
        TASK_UTILS.build(cfg, default_args=dict(context=head))


def test_unlabelled_scenes_train_without_nan(config, scenes):
    for index in range(4):
        cv2.imwrite(str(label_map(scenes, 'train', index)), np.full((48, 48), 255, np.uint8))
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.message_hub.get_scalar('train/loss').current() == 0
    assert all(p.isfinite().all() for p in runner.model.parameters())
