"""tools/train.py and tools/test.py with the digits Mask R-CNN and a handful of tiny scenes."""
import json
import re
import sys

import cv2
import pytest
import torch
from common import ROOT, load_tool

pytest.importorskip('mmdet')
from mmengine.config import Config  # noqa: E402
from mmengine.evaluator import Evaluator  # noqa: E402
from mmengine.fileio import load  # noqa: E402
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope  # noqa: E402
from mmengine.runner import save_checkpoint  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402

from mmcontext.utils.cli import run  # noqa: E402

CONFIG = ROOT / 'configs/cednet/mask_rcnn_cednet26_fpn_digits.py'
OPTIONS = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=5', 'train_dataloader.batch_size=2']
OPTIONS += [f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
            for key in ('num_workers=0', 'persistent_workers=False')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A working folder with scenes, and annotation files that are wrong in different ways."""
    root = tmp_path_factory.mktemp('work')
    scenes = load_tool('dataset_converters/digits_scenes.py')
    scenes.write_dataset(str(root / 'data/digits_coco'), train=4, val=2, size=64)
    annotations = root / 'data/digits_coco/annotations'
    good = json.loads((annotations / 'instances_train.json').read_text())
    for name, changes in dict(no_images=dict(images=[], annotations=[]),
                              no_objects=dict(annotations=[]),
                              other_names=dict(categories=[
                                  dict(c, name=c['name'].upper())
                                  for c in good['categories']])).items():
        (annotations / f'{name}.json').write_text(json.dumps({**good, **changes}))
    (annotations / 'cut.json').write_text('{"images": [')
    return root


@pytest.fixture
def tool(folder, tmp_path, monkeypatch, capsys):
    """Run a tool in the working folder; returns its exit status and stderr."""
    monkeypatch.chdir(folder)

    def call(name, *args, options=()):
        monkeypatch.setattr(sys, 'argv', [
            f'{name}.py', str(CONFIG), *args, '--work-dir', str(tmp_path), '--cfg-options',
            *OPTIONS, *options])
        DefaultScope._instance_dict.clear()
        status = run(load_tool(f'{name}.py').main)
        lines = capsys.readouterr().err.splitlines()
        return status, [line for line in lines if line.startswith(f'{name}.py: error:')]
    return call


@pytest.mark.parametrize('option, message', [
    ('train_dataloader.dataset.ann_file=annotations/none.json',
     'annotation file data/digits_coco/annotations/none.json .* does not exist'),
    ('train_dataloader.dataset.ann_file=annotations/cut.json', 'cut.json .* is no valid JSON'),
    ('train_dataloader.dataset.ann_file=annotations/no_images.json', 'found no samples'),
    ('train_dataloader.dataset.ann_file=annotations/other_names.json',
     'only 0 of the 10 classes of CocoDataset .*other_names.json'),
    ('train_dataloader.dataset.data_prefix.img=nowhere/', 'nowhere/000000.png, does not exist'),
    ('model.roi_head.bbox_head.num_classes=9',
     r'roi_head.bbox_head .* has num_classes=9, but CocoDataset has 10 classes'),
])
def test_a_mistake_is_told_in_one_sentence(tool, option, message):

    status, said = tool('train', options=[option])
    assert status == 1 and len(said) == 1
    assert re.search(message, said[0]), said[0]


def test_scenes_without_objects_train(tool, tmp_path):
    status, _ = tool('train', options=[
        'train_dataloader.dataset.ann_file=annotations/no_objects.json'])
    assert status == 0 and (tmp_path / 'epoch_1.pth').is_file()


def almost_right(self, batch_inputs, batch_data_samples, rescale=True):
    """Replaces an untrained network: the ground truth without one object, with boxes a bit off."""
    for sample in batch_data_samples:
        truth = sample.gt_instances[1:]
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes + torch.tensor([0, 0, 4, 4]), labels=truth.labels,
            scores=torch.linspace(1, 0.5, len(truth)),
            masks=truth.masks.to_tensor(torch.bool, 'cpu'))
    return batch_data_samples


def test_results_give_the_same_metrics_offline(tool, folder, tmp_path, monkeypatch):
    """--out, evaluated as by mmdet's eval_metric.py, and the COCO JSON dump."""
    monkeypatch.setattr('mmdet.models.TwoStageDetector.predict', almost_right)
    init_default_scope('mmdet')
    checkpoint, pickled = str(tmp_path / 'model.pth'), str(tmp_path / 'results.pkl')
    cfg = Config.fromfile(CONFIG)
    save_checkpoint({'state_dict': MODELS.build(cfg.model).state_dict()}, checkpoint)
    assert tool('test', checkpoint, '--out', pickled,
                options=[f'test_evaluator.outfile_prefix={tmp_path}/coco'])[0] == 0
    online = {}
    for path in tmp_path.glob('*/*.json'):
        online.update(json.loads(path.read_text()))

    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    predictions = load(pickled)
    assert len(predictions) == len(dataset) == 2
    offline = evaluator.offline_evaluate(predictions)
    for name in ('coco/bbox_mAP', 'coco/segm_mAP'):
        assert 0.1 < offline[name] < 1
        assert offline[name] == online[name]

    truth = COCO(str(folder / 'data/digits_coco/annotations/instances_val.json'))
    for kind in ('bbox', 'segm'):
        found = json.loads((tmp_path / f'coco.{kind}.json').read_text())
        assert {entry['image_id'] for entry in found} == {0, 1}
        assert len(truth.loadRes(found).anns) == len(found) == sum(
            len(p['pred_instances']['scores']) for p in predictions)


def test_inferencer_draws_boxes_and_masks(folder, tmp_path, monkeypatch):
    from mmdet.apis import DetInferencer
    monkeypatch.chdir(folder)
    DefaultScope._instance_dict.clear()
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIG)
    checkpoint = str(tmp_path / 'model.pth')
    save_checkpoint({
        'state_dict': MODELS.build(cfg.model).state_dict(),
        'meta': dict(dataset_meta=dict(
            classes=cfg.train_dataloader.dataset.metainfo.classes,
            palette=[(index * 20, 255 - index * 20, 128) for index in range(10)]))}, checkpoint)
    inferencer = DetInferencer(str(CONFIG), checkpoint, device='cpu', show_progress=False)
    inferencer.model.roi_head.test_cfg.score_thr = 0.0
    inferencer.model.roi_head.bbox_head.fc_cls.bias.data[3] = 5.
    picture = 'data/digits_coco/val/000000.png'
    found = inferencer(picture, out_dir=str(tmp_path), pred_score_thr=0.0)['predictions'][0]
    assert 3 in found['labels'] and len(found['masks']) == len(found['bboxes'])
    drawn = cv2.imread(str(tmp_path / 'vis/000000.png'))
    original = cv2.imread(picture)
    assert drawn.shape == original.shape and (drawn != original).any()
