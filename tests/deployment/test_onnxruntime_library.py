"""This package's operator in onnxruntime, against the aggregation's definition."""
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from common import ROOT, load_tool
from tolerances import assert_near
from torch import nn

from mmcontext.deployment.graph import Graph, export
from mmcontext.deployment.onnxruntime_library import DOMAIN, LIBRARY_NAME, write_library
from mmcontext.deployment.runtime import OnnxGraph
from mmcontext.ops import local_aggregation
from mmcontext.ops.local_aggregation import Geometry
from mmcontext.ops.local_aggregation.reference import aggregate
from mmcontext.utils.errors import UserError

onnxruntime = pytest.importorskip('onnxruntime')
# Relative to the largest value.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.float64: 1e-14}


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    """The library, compiled without optimisation, which takes a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXXFLAGS', '-O0')
        patch.setenv('MMCONTEXT_KERNEL_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield str(write_library(str(tmp_path_factory.mktemp('library'))))


class _Aggregation(nn.Module):
    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        *self.sizes, interleaved = geometry
        self.share = 'interleaved' if interleaved else 'block'

    def forward(self, x, w):
        return local_aggregation(x, w, *self.sizes, self.share)


def _operands(geometry: Geometry, size: tuple, dtype: torch.dtype = torch.float32,
              batch: int = 2) -> tuple:
    height, width = geometry.kernel_size
    return (torch.randn(batch, 6, *size, dtype=dtype),
            torch.randn(batch, 3, height * width, *geometry.output_size(*size), dtype=dtype))


def _session(geometry: Geometry, example: tuple, path: str, library: str,
             threads: int = 1) -> 'onnxruntime.InferenceSession':
    axes = {'x': {0: 'b', 2: 'h', 3: 'w'}, 'w': {0: 'b', 3: 'i', 4: 'j'}}
    export(Graph(_Aggregation(geometry).eval(), example, axes, {'y': {0: 'b', 2: 'i', 3: 'j'}},
                 {'config': ''}, None), path, own_operators=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('kernel_size, stride, padding, dilation, size', [
    ((3, 3), (1, 1), (1, 1), (1, 1), (5, 6)),
    ((7, 7), (2, 2), (3, 3), (1, 1), (9, 8)),
    ((2, 5), (1, 3), (0, 4), (2, 1), (7, 7)),
    ((1, 2), (3, 3), (4, 0), (2, 3), (9, 9)),
    ((1, 1), (1, 1), (0, 0), (1, 1), (1, 1)),
])
def test_operator_equals_definition(kernel_size, stride, padding, dilation, size, dtype, library,
                                    tmp_path):
    for interleaved in (False, True):
        geometry = Geometry(kernel_size, stride, padding, dilation, interleaved)
        session = _session(geometry, _operands(geometry, size, dtype), str(tmp_path / 'y.onnx'),
                           library, threads=1 + interleaved)
        # A batch and size other than those of the trace.
        for batch, grown in ((1, size), (3, tuple(side + 4 for side in size))):
            x, w = _operands(geometry, grown, dtype, batch)
            y, = session.run(None, {'x': x.numpy(), 'w': w.numpy()})
            assert y.dtype == x.numpy().dtype
            assert_near(torch.from_numpy(y), aggregate(x.double(), w.double(), geometry),
                        TOLERANCES[dtype])


def test_operands_that_do_not_fit_are_refused(library, tmp_path):
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), False)
    session = _session(geometry, _operands(geometry, (5, 5)), str(tmp_path / 'y.onnx'), library)
    x, w = (operand.numpy() for operand in _operands(geometry, (5, 5)))
    for wrong in ({'x': x[:, :, :4], 'w': w}, {'x': x[:1], 'w': w}, {'x': x, 'w': w[..., :4]}):
        with pytest.raises(Exception, match='shapes of x and w do not fit'):
            session.run(None, wrong)
    y, = session.run(None, {'x': x[:0], 'w': w[:0]})
    assert y.shape == (0, 6, 5, 5)


@pytest.mark.parametrize('compiler, message', [
    ('no-such-compiler', 'needs a C\\+\\+ compiler, and no-such-compiler cannot be run'),
    ('false', 'false cannot compile'),
])
def test_compiler_that_does_not_serve(compiler, message, tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', compiler)
    with pytest.raises(UserError, match=message):
        write_library(str(tmp_path))


def test_tools_write_compare_and_run_it(library, tmp_path, monkeypatch, capsys):
    tool = load_tool('deployment/export_onnx.py')
    model = str(tmp_path / 'model.onnx')
    monkeypatch.setattr(sys, 'argv', [
        'export_onnx.py', str(ROOT / 'configs/cednet/cednet26_digits.py'), '--out', model,
        '--preprocess', 'in', '--own-operators'])
    assert tool.run(tool.main) == 0
    out = capsys.readouterr().out
    assert f'it needs {tmp_path / LIBRARY_NAME}' in out and out.count('logits differ by') == 2
    nodes = pytest.importorskip('onnx').load(model).graph.node
    # One for each of its eight blocks, and one for the stem.
    assert [node.domain for node in nodes].count(DOMAIN) == 9
    cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((40, 40, 3), np.uint8))
    command = [sys.executable, str(ROOT / 'tools/deployment/infer_onnx.py'), model,
               str(tmp_path / 'image.png')]
    # By its bare name, as the page says.
    done = subprocess.run([*command, '--library', LIBRARY_NAME], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and 'ms' in done.stdout
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert '--library' in done.stderr
    quantize = load_tool('deployment/quantize_onnx.py')
    for arguments, status in ((['--fp16'], 0), (['--config', str(
            ROOT / 'configs/cednet/cednet26_digits.py')], 1)):
        monkeypatch.setattr(sys, 'argv', ['quantize_onnx.py', model, '--library', library,
                                          *arguments])
        assert quantize.run(quantize.main) == status
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    whole, half = (OnnxGraph(str(tmp_path / name), library)(torch.from_numpy(images))['logits']
                   for name in ('model.onnx', 'model_fp16.onnx'))
    assert_near(torch.from_numpy(half), torch.from_numpy(whole), 1e-2)  # float16, a whole network
