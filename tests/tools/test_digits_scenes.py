import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from common import ROOT, load_tool

TOOL = ROOT / 'tools/dataset_converters/digits_scenes.py'
SMALL = dict(train=3, val=2, size=48)


@pytest.fixture(scope='module')
def tool():
    return load_tool('dataset_converters/digits_scenes.py')


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*')
            if path.is_file()}


def test_splits_are_made_from_different_digits(tool):
    train, train_labels = tool.load_digits('train')
    val, val_labels = tool.load_digits('val')
    assert len(train) + len(val) == 1797
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in val}
    assert set(train_labels) == set(val_labels) == set(range(10))


def test_scenes_depend_on_seed_split_and_index_alone(tool):
    first, second = tool.scenes('train', 2, 64, seed=3)
    again = next(tool.scenes('train', 1, 64, seed=3))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    for other in (second, next(tool.scenes('val', 1, 64, seed=3)),
                  next(tool.scenes('train', 1, 64, seed=4))):
        assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize('size', [48, 128])
def test_masks_boxes_and_semantic_map_agree(tool, size):
    for scene in tool.scenes('val', 20, size):
        assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
        assert scene.masks.any(axis=(1, 2)).all()
        assert scene.masks.sum(0).max() == 1
        expected = np.zeros((size, size), np.uint8)
        for mask, label, (x, y, w, h) in zip(scene.masks, scene.labels, scene.boxes()):
            inside = mask[y:y + h, x:x + w]
            assert inside.sum() == mask.sum()
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
            expected[mask] = label + 1
        assert np.array_equal(scene.semantic_map(), expected)


def test_run_lengths_are_those_of_coco(tool):
    mask_api = pytest.importorskip('pycocotools.mask')
    rng = np.random.default_rng(0)
    masks = [rng.random((5, 7)) > 0.5 for _ in range(20)]
    masks += [np.zeros((4, 3), bool), np.ones((4, 3), bool)]
    for mask in masks:
        rle = tool.encode_rle(mask)
        assert sum(rle['counts']) == mask.size
        decoded = mask_api.decode(mask_api.frPyObjects(rle, *mask.shape))
        assert np.array_equal(decoded.astype(bool), mask)


def test_coco_layout_is_read_by_mmdet(tool, tmp_path):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=True)
    root = tmp_path / 'scenes'
    assert tool.write_dataset(str(root), **SMALL)
    dataset = CocoDataset(
        data_root=str(root), ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'), metainfo=dict(classes=tool.DIGIT_NAMES),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                  dict(type='PackDetInputs')])
    assert len(dataset) == SMALL['train']
    for item, scene in zip(dataset, tool.scenes('train', SMALL['train'], SMALL['size'])):
        instances = item['data_samples'].gt_instances
        assert np.array_equal(item['inputs'].permute(1, 2, 0).numpy(), scene.image)
        assert instances.labels.tolist() == scene.labels.tolist()
        assert np.array_equal(instances.masks.masks.astype(bool), scene.masks)
        x, y, w, h = scene.boxes().T
        assert np.array_equal(instances.bboxes.numpy(), np.stack([x, y, x + w, y + h], 1))


def test_cityscapes_layout(tool, tmp_path):
    root = tmp_path / 'scenes'
    tool.write_dataset(str(root), layout='cityscapes', **SMALL)
    for split in ('train', 'val'):
        scenes = list(tool.scenes(split, SMALL[split], SMALL['size']))
        images = sorted((root / 'leftImg8bit' / split / 'digits').iterdir())
        labels = sorted((root / 'gtFine' / split / 'digits').iterdir())
        assert len(images) == len(labels) == SMALL[split]
        for image, label, scene in zip(images, labels, scenes):
            assert image.name.replace('leftImg8bit', 'gtFine_labelTrainIds') == label.name
            assert np.array_equal(cv2.imread(str(image)), scene.image)
            assert np.array_equal(cv2.imread(str(label), cv2.IMREAD_UNCHANGED),
                                  scene.semantic_map())


def test_second_run_reuses_and_other_options_need_force(tool, tmp_path):
    root = tmp_path / 'scenes'
    assert tool.write_dataset(str(root), **SMALL)
    before = content(root)
    assert not tool.write_dataset(str(root), **SMALL)
    with pytest.raises(FileExistsError, match='other options.*--force'):
        tool.write_dataset(str(root), seed=1, **SMALL)
    assert content(root) == before
    assert tool.write_dataset(str(root), seed=1, force=True, **SMALL)
    assert content(root) != before
    assert [path.name for path in tmp_path.iterdir()] == ['scenes']


def test_a_folder_of_someone_else_is_never_replaced(tool, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'file').write_text('precious')
    with pytest.raises(FileExistsError, match='something else'):
        tool.write_dataset(str(tmp_path / 'mine'), force=True, **SMALL)
    assert (tmp_path / 'mine' / 'file').read_text() == 'precious'


def test_an_interrupted_run_leaves_nothing(tool, tmp_path, monkeypatch):
    def fail(path, image):
        if path.name == '000001.png':
            raise OSError('disk full')
    monkeypatch.setattr(tool, '_write_image', fail)
    with pytest.raises(OSError, match='disk full'):
        tool.write_dataset(str(tmp_path / 'scenes'), **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('options, message', [
    (dict(layout='voc'), "layout must be one of .*got 'voc'"),
    (dict(train=0), 'train must be at least 1, got 0'),
    (dict(size=20), 'size must be at least 48, got 20'),
    (dict(seed=-1), 'seed must be at least 0, got -1'),
])
def test_bad_options(tool, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tool.write_dataset(str(tmp_path / 'scenes'), **options)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path):
    def run(*options):
        return subprocess.run([sys.executable, str(TOOL), '--out', 'scenes', *options],
                              cwd=tmp_path, capture_output=True, text=True)
    options = ('--train', '2', '--val', '1', '--size', '64')
    first, second = run(*options), run(*options)
    assert first.returncode == second.returncode == 0, first.stderr
    assert 'written to scenes' in first.stdout and 'already in scenes' in second.stdout
    coco = json.loads((tmp_path / 'scenes/annotations/instances_val.json').read_text())
    assert len(coco['images']) == 1 and len(coco['categories']) == 10
    refused = run('--train', '3')
    assert refused.returncode == 1
    assert 'already holds' in refused.stderr and 'Traceback' not in refused.stderr
