"""float16 and int8 variants of an exported classifier."""
import copy
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from common import ROOT, load_tool
from mmengine.config import Config

from mmcontext.deployment.graph import build_graph, export
from mmcontext.deployment.runtime import OnnxGraph
from mmcontext.deployment.untrained import make_decided

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('mmpretrain')

quantize_onnx = load_tool('deployment/quantize_onnx.py')
CONFIG = str(ROOT / 'configs/cednet/cednet26_digits.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """An exported network and ten training images."""
    folder = tmp_path_factory.mktemp('quantize')
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / 'train' / str(label)).mkdir(parents=True)
        assert cv2.imwrite(str(folder / f'train/{label}/0.png'),
                           rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.base_channels = 32
    cfg.model.head.in_channels = 1024
    graph = build_graph(cfg, shape=(3, 32, 32), preprocess='in')
    images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    make_decided(graph.model, lambda: graph.module(images))
    export(graph, str(folder / 'model.onnx'))
    return folder


def test_calibration_images_are_as_the_graph_takes_them(folder):
    cfg = Config.fromfile(CONFIG)
    cfg.train_dataloader.dataset.data_root = str(folder)
    inputs = {}
    for preprocess in ('in', 'out'):
        graph = SimpleNamespace(metadata=dict(preprocess=preprocess, task='classification'))
        inputs[preprocess] = quantize_onnx.calibration_images(copy.deepcopy(cfg), graph, 10)
    mean, std = (np.array(cfg.data_preprocessor[name]) for name in ('mean', 'std'))
    for raw, normalised in zip(inputs['in'], inputs['out']):
        expected = (raw['images'] - mean) / std
        # float32.
        np.testing.assert_allclose(normalised['images'], expected.transpose(0, 3, 1, 2), atol=1e-5)


def _run(monkeypatch, folder, *arguments) -> int:
    monkeypatch.setattr(sys, 'argv', ['quantize_onnx.py', str(folder / 'model.onnx'), *arguments])
    return quantize_onnx.run(quantize_onnx.main)


# Noise relative to the logits' standard deviation; size relative to the float32 file.
@pytest.mark.parametrize('arguments, name, tolerance, share', [
    (['--fp16'], 'model_fp16.onnx', 0.01, 0.6),
    (['--config', CONFIG, '--calibration', '8', '--cfg-options', 'train_dataloader.dataset.'
      'data_root={}'], 'model_int8.onnx', 0.3, 0.5),
    (['--config', CONFIG, '--calibration', '8', '--keep', 'span', '--out', '{}/kept.onnx',
      '--cfg-options', 'train_dataloader.dataset.data_root={}'], 'kept.onnx', 0.3, 0.5),
])
def test_variants(arguments, name, tolerance, share, folder, monkeypatch):
    assert _run(monkeypatch, folder, *(text.format(folder) for text in arguments)) == 0
    plain, other = OnnxGraph(str(folder / 'model.onnx')), OnnxGraph(str(folder / name))
    assert other.metadata == plain.metadata
    assert (folder / name).stat().st_size < share * (folder / 'model.onnx').stat().st_size
    image = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    expected, actual = plain(image)['logits'], other(image)['logits']
    assert actual.dtype == np.float32
    assert 0 < np.std(actual - expected) < tolerance * np.std(expected)


def test_int8_needs_the_config_of_the_file(folder, monkeypatch, capsys):
    other = str(ROOT / 'configs/ccnn/ccnn_digits.py')
    assert _run(monkeypatch, folder, '--config', other) == 1
    assert 'was exported from cednet26_digits.py' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, message', [
    (['--config', CONFIG, '--cfg-options', 'train_dataloader.dataset.data_root=absent'],
     'the folder absent (data_root of CustomDataset) does not exist'),
    (['--fp16', '--out', '.'], 'cannot be written: it is a folder'),
])
def test_refusals_in_one_sentence(arguments, message, folder, monkeypatch, capsys):
    assert _run(monkeypatch, folder, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_pattern_has_to_be_one(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        _run(monkeypatch, folder, '--config', CONFIG, '--keep', '(')
    assert '--keep must be a regular expression' in capsys.readouterr().err
