"""The code on the pages that readers copy from runs."""
import json
import os
import re

import cv2
import numpy as np
import pytest
from common import ROOT
from mmengine.config import Config

from mmcontext.engine.runner import make_runner


def blocks(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / page).read_text(), re.S)


def test_plain_pytorch(monkeypatch):
    pytest.importorskip('torchvision')
    pytest.importorskip('huggingface_hub')
    namespace = {}
    for number, block in enumerate(blocks('plain_pytorch.md'), 1):
        exec(compile(block, f'block {number} of plain_pytorch.md', 'exec'), namespace)


def write_classes(root):
    for split in ('train', 'val'):
        for name in ('daisy', 'rose', 'tulip'):
            write_images(root / 'flowers' / split / name, 2)


def write_images(folder, count, labels=None, suffix='png'):
    folder.mkdir(parents=True)
    generator = np.random.RandomState(0)
    shape = (40, 48) if labels else (40, 48, 3)
    for index in range(count):
        pixels = generator.randint(0, labels or 256, shape, dtype=np.uint8)
        cv2.imwrite(str(folder / f'{index}.{suffix}'), pixels)


def write_boxes(root):
    write_images(root / 'parts/images', 4)
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', height=40, width=48) for i in range(4)],
        categories=[dict(id=1, name='screw'), dict(id=2, name='nut')],
        annotations=[dict(id=i, image_id=i, category_id=1 + i % 2, bbox=[4, 5, 30, 25], area=750,
                          iscrowd=0) for i in range(4)])
    for split in ('train', 'val'):
        (root / f'parts/{split}.json').write_text(json.dumps(content))


def write_maps(root):
    for split in ('train', 'val'):
        write_images(root / 'leaves/images' / split, 4, suffix='jpg')
        write_images(root / 'leaves/labels' / split, 4, labels=3)


def small(value):
    """A pipeline adapted to small images."""
    if isinstance(value, dict):
        return {key: (64, 64) if key in ('scale', 'crop_size') and not isinstance(inner, int)
                else 32 if key in ('scale', 'crop_size') else small(inner)
                for key, inner in value.items()}
    return [small(inner) for inner in value] if isinstance(value, list) else value


NARROW = dict(
    classification=dict(backbone=dict(base_channels=32), head=dict(in_channels=1024)),
    detection=dict(backbone=dict(base_channels=32), neck=dict(in_channels=[128, 256, 512, 1024])),
    segmentation=dict(backbone=dict(base_channels=32, norm_cfg=dict(type='BN')),
                      neck=dict(in_channels=[128, 256, 512, 1024]),
                      decode_head=dict(norm_cfg=dict(type='BN')),
                      data_preprocessor=dict(size=(64, 64))))


@pytest.mark.parametrize('index, task, package, write', [
    (0, 'classification', 'mmpretrain', write_classes), (1, 'detection', 'mmdet', write_boxes),
    (2, 'segmentation', 'mmseg', write_maps)], ids=lambda value: value
    if isinstance(value, str) else '')
def test_own_data(index, task, package, write, tmp_path, monkeypatch):
    pytest.importorskip(package)
    text = blocks('own_data.md')[index]
    assert len([line for line in text.splitlines() if line.strip()]) <= 18
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'data')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    (tmp_path / 'my_config.py').write_text(text)
    cfg = Config.fromfile('my_config.py')
    cfg.merge_from_dict(dict(model=NARROW[task], work_dir=str(tmp_path / 'work')))
    for name in ('train_dataloader', 'val_dataloader'):
        loader = cfg[name]
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        if task == 'classification':
            loader.collate_fn = dict(type='default_collate')
        loader.dataset.pipeline = small(loader.dataset.pipeline)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.val_cfg = dict()
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=100)
    cfg.log_level = 'ERROR'
    runner = make_runner(cfg)
    runner.train()
    assert runner.iter == 2 and len(runner.val_dataloader.dataset) > 0


def test_notebook(tmp_path, monkeypatch):
    nbclient = pytest.importorskip('nbclient')
    nbformat = pytest.importorskip('nbformat')
    pytest.importorskip('onnxruntime')
    pytest.importorskip('safetensors')
    monkeypatch.setenv('TUTORIAL_QUICK', '1')
    monkeypatch.setenv('PYTHONPATH',
                       os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    notebook = nbformat.read(ROOT / 'tools/tutorial.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)
    client = nbclient.NotebookClient(notebook, timeout=900, startup_timeout=300,
                                     resources={'metadata': {'path': str(tmp_path)}})
    client.execute()
    results = [cell.outputs[-1]['data']['text/plain'] for cell in notebook.cells
               if cell.cell_type == 'code' and cell.outputs
               and cell.outputs[-1].output_type == 'execute_result']
    assert float(results[-2]) < 1e-4  # float32, a whole network
    assert results[-1].endswith(".safetensors'")


def test_every_file_that_contributing_names_is_there():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    named = re.findall(r'(?<![\w./*{-])[\w.-]+/[\w./-]*|\b[\w-]+\.(?:py|sh|md|yml|cpp|inc|h)\b',
                       text)
    folders = [ROOT, *map((ROOT / 'mmcontext').joinpath, (
        '', 'ops', 'ops/csrc', 'layers', 'models', 'models/backbones', 'converters', '../tools',
        '../configs/rednet', '../tests/models', '../tests/configs'))]
    lost = {name for name in named if not any((folder / name).exists() for folder in folders)
            and 'toy' not in name and not name.startswith('.venv/')}
    assert len(named) > 90 and not lost
