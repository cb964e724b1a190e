"""Export to ONNX and torch.export: only standard operators, the same results."""
import copy
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from common import ROOT, load_tool
from mmengine.config import Config
from tolerances import DOUBLE, DOUBLE_LAYERS, assert_close
from torch import nn

from mmcontext.deployment.checking import compare, finite_inputs, random_inputs
from mmcontext.deployment.graph import Graph, build_graph, export
from mmcontext.deployment.preprocess import Normalisation
from mmcontext.deployment.runtime import OnnxGraph
from mmcontext.layers import CVolution2d
from mmcontext.ops import local_aggregation, standard_operators
from mmcontext.ops.local_aggregation import Geometry
from mmcontext.ops.local_aggregation.reference import aggregate
from mmcontext.ops.local_aggregation.standard import aggregate_rows, aggregate_tiles
from mmcontext.registry import MODELS
from mmcontext.utils.errors import UserError

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

export_onnx = load_tool('deployment/export_onnx.py')

FAMILIES = {
    'CoResNet': 50, 'PyConvResNet': 18, 'PyConvHGResNet': 50, 'CoTNet': 50, 'CoTNeXt': 50,
    'SECoTNetD': 50, 'RedNet': 26, 'CedNet': 26,
}


class _Classifier(nn.Module):
    """A backbone, narrow if its groups allow it, and a linear layer on the pooled features."""

    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(
            type=f'mmcontext.{kind}', depth=FAMILIES[kind],
            base_channels=64 if 'PyConv' in kind else 32, **options))
        self.head = nn.LazyLinear(5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images)[0].mean(dim=(2, 3)))


def _classifier(kind: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = _Classifier(kind, **options)
    model(torch.randn(2, 3, 64, 64))
    return model.eval()


def _graph(model: nn.Module, shape: tuple, dynamic_size: bool = False) -> Graph:
    axes = {0: 'batch', 2: 'height', 3: 'width'} if dynamic_size else {0: 'batch'}
    return Graph(model, (torch.randn(2, *shape), ), {'images': axes}, {'logits': {0: 'batch'}},
                 dict(mmcontext='', task='classification', config='', preprocess='out', resize=[],
                      input_size=None, **Normalisation().metadata()), model)


def _difference(graph: Graph, path: str, batch: int, size: tuple = None) -> float:
    if size is not None:
        graph = graph._replace(example=(torch.randn(2, 3, *size), ))
    return compare(graph, OnnxGraph(path), random_inputs(graph, batch)).logits


def _assert_standard(path: str) -> None:
    graph = onnx.load(path).graph
    onnx.checker.check_model(path)
    assert {node.domain for node in graph.node} <= {'', 'ai.onnx'}


@pytest.mark.parametrize('share', ['block', 'interleaved'])
@pytest.mark.parametrize('kernel_size, stride, padding, dilation, size', [
    ((3, 3), (1, 1), (1, 1), (1, 1), (5, 6)),
    ((7, 7), (2, 2), (3, 3), (1, 1), (9, 8)),
    ((2, 5), (1, 3), (0, 4), (2, 1), (7, 7)),
    ((5, 9), (3, 1), (3, 2), (2, 1), (12, 17)),
    ((1, 2), (3, 3), (4, 0), (2, 3), (9, 9)),
])
def test_standard_form_equals_reference(kernel_size, stride, padding, dilation, size, share):
    geometry = Geometry(kernel_size, stride, padding, dilation, share == 'interleaved')
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    w = torch.randn(2, 3, kernel_size[0] * kernel_size[1], *geometry.output_size(*size),
                    dtype=torch.float64)
    expected = aggregate(x, w, geometry)
    for form in (aggregate_rows, *([aggregate_tiles] if dilation[1] == 1 else [])):
        assert_close(form(x, w, geometry), expected, DOUBLE)
    with standard_operators():
        actual = local_aggregation(x, w, kernel_size, stride, padding, dilation, share)
    assert_close(actual, expected, DOUBLE)


@pytest.mark.parametrize('kind', FAMILIES)
def test_onnx_serves_other_batches_and_sizes(kind, tmp_path):
    graph, path = _graph(_classifier(kind), (3, 64, 64), True), str(tmp_path / 'model.onnx')
    export(graph, path)
    _assert_standard(path)
    for batch, size in ((1, (64, 64)), (3, (96, 72))):
        assert _difference(graph, path, batch, size) < 1e-4  # float32, a whole network


def test_onnx_of_fused_layers(tmp_path):
    graph = _graph(_classifier('CedNet', layer_cfg=dict(fused=True)), (3, 64, 48))
    path = str(tmp_path / 'model.onnx')
    export(graph, path)
    _assert_standard(path)
    assert _difference(graph, path, 3) < 1e-4  # float32, a whole network


def test_comparison_finds_a_difference(tmp_path):
    graph, path = _graph(_classifier('CoResNet'), (3, 64, 64)), str(tmp_path / 'model.onnx')
    export(graph, path)
    with torch.no_grad():
        graph.model.head.bias += 1e-2 * graph.model.head.weight.abs().max() + 1
    assert not compare(graph, OnnxGraph(path), random_inputs(graph, 1))


@pytest.mark.parametrize('dtype', [torch.float32, torch.uint8])
def test_noise_is_toned_down_where_the_network_overflows(dtype):
    class Wild(nn.Module):
        def forward(self, x):
            # The square of noise exceeds float32; with a quarter of the amplitude it does not.
            return ((x.float() - middle) / spread * 3e19).square()

    middle, spread = (127.5, 127.5) if dtype == torch.uint8 else (0., 3.)
    graph = Graph(Wild(), (torch.zeros(2, 3, 8, 8, dtype=dtype), ), {}, {}, {}, None)
    assert not graph.module(*random_inputs(graph, 3)).isfinite().all()
    images, = finite_inputs(graph, 3)
    assert images.shape == (3, 3, 8, 8) and images.dtype == dtype
    assert graph.module(images).isfinite().all() and images.float().std() > 0.05


def test_gate_of_c_volution_follows_the_size_in_a_trace():
    layer = CVolution2d(16).double().eval()
    with pytest.warns(), standard_operators():
        traced = torch.jit.trace(layer, torch.randn(1, 16, 8, 8, dtype=torch.float64))
        x = torch.randn(1, 16, 11, 7, dtype=torch.float64)
        assert_close(traced(x), layer(x), DOUBLE_LAYERS)


@pytest.mark.parametrize('kind', FAMILIES)
def test_torch_export_is_of_aten_operators(kind):
    model = _classifier(kind).backbone
    x = torch.randn(1, 3, 64, 64)
    with standard_operators():
        program = torch.export.export(model, (copy.deepcopy(x), ))
    for node in program.graph.nodes:
        if node.op == 'call_function' and hasattr(node.target, 'namespace'):
            assert node.target.namespace == 'aten', node.target
    run = program.module() if hasattr(program, 'module') else program
    assert_close(run(x)[0], model(x)[0], rtol=1e-4, atol=1e-4)  # float32, a whole network


@pytest.mark.parametrize('config, arguments', [
    ('cednet/cednet26_digits.py', []),
    ('ccnn/ccnn_digits.py', ['--shape', '3', '24', '20']),
])
def test_tool(config, arguments, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'model.onnx'
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', str(ROOT / 'configs' / config),
                                      '--out', str(path), *arguments])
    assert export_onnx.run(export_onnx.main) == 0
    _assert_standard(str(path))
    assert capsys.readouterr().out.count('logits differ by') == 2


def test_tool_loads_the_checkpoint_strictly(tmp_path, monkeypatch, capsys):
    checkpoint = tmp_path / 'weights.pth'
    torch.save({'state_dict': {'backbone.unknown': torch.zeros(1)}}, checkpoint)
    monkeypatch.setattr(sys, 'argv', [
        'export_onnx.py', str(ROOT / 'configs/ccnn/ccnn_digits.py'), str(checkpoint),
        '--out', str(tmp_path / 'model.onnx')])
    assert export_onnx.run(export_onnx.main) == 1
    assert 'does not fit' in capsys.readouterr().err


@pytest.mark.parametrize('config, arguments, message', [
    ('ccnn/ccnn_4_140_cifar10.py', [], 'give it by --shape'),
    ('cednet/cednet26_digits.py', ['--opset', '3'], 'to opset 3'),
    ('cednet/mask_rcnn_cednet26_fpn_digits.py', ['--opset', '13'], 'needs opset 16'),
    ('ccnn/ccnn_sequential_digits.py', ['--shape', '1', '64', '--preprocess', 'in'],
     'takes images of three channels'),
    ('ccnn/ccnn_digits.py', ['--shape', '4', '24', '20'], 'for an input of (2, 4, 24, 20)'),
    ('ccnn/ccnn_digits.py', ['--argmax'], '--argmax is for segmentors'),
    ('ccnn/ccnn_digits.py', ['--masks', 'box'], '--masks box is for detectors'),
    ('ccnn/ccnn_digits.py', ['--out', '.'], 'cannot be written: it is a folder'),
    ('ccnn/ccnn_digits.py', ['--cfg-options', 'model.backbone.type=Nothing'], 'cannot be built'),
    ('ccnn/ccnn_digits.py', ['--cfg-options', 'model.backbone=3'], 'has no backbone, got 3'),
])
def test_tool_refuses_in_one_sentence(config, arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', str(ROOT / 'configs' / config), '--out',
                                      str(tmp_path / 'model.onnx'), *arguments])
    assert export_onnx.run(export_onnx.main) == 1
    out, error = capfd.readouterr()
    assert message in error and error.count('\n') == 1 and 'graph(' not in out


def test_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', str(ROOT / 'configs/ccnn/ccnn_digits.py'),
                                      '--out', str(tmp_path / 'model.onnx')])
    assert export_onnx.run(export_onnx.main) == 1
    assert 'pip install onnx\n' in capsys.readouterr().err


class _Foreign(torch.autograd.Function):
    """An operator that ONNX does not have."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def symbolic(g, x):
        return g.op('elsewhere::Double', x)


def test_operators_of_others_are_refused(tmp_path):
    class Doubled(nn.Module):
        def forward(self, x):
            return _Foreign.apply(x)

    path = tmp_path / 'model.onnx'
    with pytest.raises(UserError, match='not in ONNX, but of elsewhere'):
        export(_graph(Doubled(), (3, 4, 4)), str(path))
    assert not path.exists()


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Scenes of digits, an untrained segmentor's weights, and its graph for raw images."""
    folder = tmp_path_factory.mktemp('scenes')
    command = [sys.executable, str(ROOT / 'tools/dataset_converters/digits_scenes.py'), '--layout',
               'cityscapes', '--out', str(folder / 'data'), '--train', '1', '--val', '3', '--size',
               '64']
    subprocess.run(command, check=True, capture_output=True)
    config = folder / 'segmentor.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/pyconv/pyconvsegnet_pyconvresnet18_digits.py'\n"
        f"test_dataloader = dict(dataset=dict(data_root='{folder}/data'))\n")
    graph = build_graph(Config.fromfile(config), preprocess='in')
    torch.save({'state_dict': graph.model.state_dict()}, folder / 'weights.pth')
    export(graph, str(folder / 'model.onnx'))
    return folder


def _metric(tool, folder, model: str, monkeypatch) -> dict:
    out = folder / tool.__name__
    monkeypatch.setattr(sys, 'argv', [tool.__name__, str(folder / 'segmentor.py'),
                                      str(folder / model), '--work-dir', str(out)])
    assert tool.run(tool.main) == 0
    return json.loads(next(out.glob('*/*.json')).read_text().splitlines()[-1])


@pytest.mark.filterwarnings('ignore')
def test_metric_of_a_graph_is_that_of_the_network(scenes, monkeypatch, capsys):
    expected = _metric(load_tool('test.py'), scenes, 'weights.pth', monkeypatch)
    actual = _metric(load_tool('deployment/test_onnx.py'), scenes, 'model.onnx', monkeypatch)
    assert actual['mIoU'] == expected['mIoU'] and 0 < actual['aAcc'] == expected['aAcc']
    assert '3/3' in capsys.readouterr().out


def test_graph_runs_without_torch(scenes, tmp_path):
    image = next((scenes / 'data').glob('leftImg8bit/val/*/*.png'))
    script = ROOT / 'tools/deployment/infer_onnx.py'
    program = (f"import runpy, sys; sys.modules['torch'] = sys.modules['mmengine'] = None; "
               f"sys.argv = ['infer_onnx.py', r'{scenes}/model.onnx', r'{image}', '--out-dir', "
               f"r'{tmp_path}']; runpy.run_path(r'{script}', run_name='__main__')")
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ' ms' in done.stdout and cv2.imread(str(tmp_path / image.name)).shape == (64, 64, 3)


@pytest.mark.parametrize('content, name, message', [
    (b'junk', 'image.png', 'cannot be loaded by onnxruntime'),
    (None, 'image.png', 'image.png cannot be read as an image'),
    (None, 'absent.png', 'absent.png does not exist'),
])
def test_inference_refuses_in_one_sentence(content, name, message, scenes, tmp_path, monkeypatch,
                                           capsys):
    (tmp_path / 'image.png').write_bytes(b'junk')
    model = scenes / 'model.onnx'
    if content is not None:
        model = tmp_path / 'model.onnx'
        model.write_bytes(content)
    monkeypatch.setattr(sys, 'argv', ['infer_onnx.py', str(model), str(tmp_path / name)])
    assert load_tool('deployment/infer_onnx.py').main() == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


@pytest.mark.parametrize('arguments, message', [
    (['--enlarge', '0'], '--enlarge must be at least 1'),
    (['--score', 'nan'], '--score must be from 0 to 1'),
])
def test_inference_refuses_options(arguments, message, scenes, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['infer_onnx.py', str(scenes / 'model.onnx'), 'image.png',
                                      *arguments])
    with pytest.raises(SystemExit):
        load_tool('deployment/infer_onnx.py').main()
    assert message in capsys.readouterr().err


def test_pictures_of_a_strip_and_of_one_that_cannot_be_written(scenes, tmp_path, monkeypatch,
                                                               capsys):
    strip, tool = tmp_path / 'strip.png', load_tool('deployment/infer_onnx.py')
    cv2.imwrite(str(strip), np.zeros((1, 300, 3), np.uint8))
    monkeypatch.setattr(sys, 'argv', ['infer_onnx.py', str(scenes / 'model.onnx'), str(strip),
                                      '--out-dir', str(tmp_path / 'out')])
    assert tool.main() == 0
    (tmp_path / 'out/strip.png').unlink()
    (tmp_path / 'out/strip.png').mkdir()
    assert tool.main() == 1
    assert 'strip.png cannot be written' in capsys.readouterr().err


def _foreign_file(path, metadata: dict):
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [1]) for name in 'xy')
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], 'g', [x], [y]), ir_version=8,
        opset_imports=[onnx.helper.make_opsetid('', 17)])
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_graph_of_another_tool_or_config_is_refused(scenes, tmp_path, monkeypatch, capsys):
    config = str(ROOT / 'configs/pyconv/pyconvsegnet_pyconvresnet18_digits.py')
    other = _foreign_file(tmp_path / 'other.onnx', {})
    half = _foreign_file(tmp_path / 'half.onnx', dict(mmcontext='"1.0"'))
    wrong = _foreign_file(tmp_path / 'wrong.onnx', dict(mmcontext='1.0.0'))
    unknown = 'was not written by export_onnx.py'
    for model, message in ((other, unknown), (half, unknown), (wrong, unknown),
                           (scenes / 'model.onnx', 'was exported from segmentor.py')):
        for name, arguments in (('test_onnx', [config, str(model)]),
                                ('infer_onnx', [str(model), config])):
            if name == 'infer_onnx' and message != unknown:
                continue
            tool = load_tool(f'deployment/{name}.py')
            monkeypatch.setattr(sys, 'argv', [name, *arguments])
            assert (tool.run(tool.main) if name == 'test_onnx' else tool.main()) == 1
            error = capsys.readouterr().err
            assert message in error and error.count('\n') == 1


def test_input_that_a_graph_does_not_take(scenes):
    with pytest.raises(UserError, match=r'does not take an input of \(1, 3, 9\)'):
        OnnxGraph(str(scenes / 'model.onnx'))(torch.zeros(1, 3, 9, dtype=torch.uint8))
