"""What happens with a library for another torch, or none, and where it is reported."""
import importlib
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mmcontext.ops import local_aggregation, native_library, tracing

RUNNING = '.'.join(torch.__version__.split('.')[:2])
TWO_AGGREGATIONS = """
import torch
from mmcontext.ops import explain, local_aggregation
x, w = torch.randn(1, 4, 5, 5), torch.randn(1, 2, 9, 5, 5)
for _ in range(2):
    local_aggregation(x, w, 3, padding=1)
print(explain(x, w, 3, padding=1)['chosen'])
"""


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(native_library, 'UNAVAILABLE', 'the C++ kernels are missing: a test')
    monkeypatch.setattr(native_library, '_warned', False)


def test_a_library_for_another_torch_is_not_loaded(tmp_path):
    (tmp_path / '_native_torch1_0.so').write_text('loading this would fail')
    reason = native_library._load(tmp_path)
    assert reason == f'they were built for torch 1.0, this is {torch.__version__}'
    (tmp_path / f'_native_torch{RUNNING.replace(".", "_")}.so').write_text('no library')
    assert 'does not load' in native_library._load(tmp_path)


def test_the_reason_noted_at_the_installation_is_given(tmp_path):
    assert 'not compiled' in native_library._load(tmp_path)
    (tmp_path / '_native_missing.txt').write_text('no compiler')
    assert native_library._load(tmp_path) == 'no compiler'


def test_the_first_aggregation_says_that_kernels_are_missing(tmp_path):
    package = Path(native_library.__file__).parents[1]
    shutil.copytree(package, tmp_path / 'mmcontext',
                    ignore=shutil.ignore_patterns('*.so', '*.pyd', '.mim', '__pycache__'))
    (tmp_path / 'mmcontext/ops/_native_torch1_0.so').write_text('for another torch')
    done = subprocess.run([sys.executable, '-c', TWO_AGGREGATIONS], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert done.stdout == 'torch\n'
    said = [line for line in done.stderr.splitlines() if 'C++ kernels' in line]
    assert len(said) == 1 and 'built for torch 1.0' in said[0] and 'pip install' in said[0]


def test_so_does_the_first_convolution_with_its_norm(without_library):
    from mmcontext.layers.conv_norm import ConvNormAct
    block = ConvNormAct(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).eval()
    with torch.no_grad(), pytest.warns(UserWarning, match='missing: a test'):
        block(torch.randn(1, 2, 4, 4))


@pytest.mark.skipif(bool(native_library.UNAVAILABLE), reason='no kernels, so it warns')
def test_kernels_that_are_there_are_not_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        x, w = torch.randn(1, 4, 5, 5), torch.randn(1, 2, 9, 5, 5)
        local_aggregation(x, w, 3, padding=1)


@pytest.mark.parametrize('name, complaint', [
    ('_C._functorch.peek_interpreter_stack', 'transform'),
    ('_C._len_torch_dispatch_stack', 'TorchDispatchMode'),
    ('autograd.forward_ad._current_level', 'transform')])
def test_torch_without_its_private_names_is_taken_with_care(monkeypatch, name, complaint):
    """As with a later torch, which may lack any of them."""
    with monkeypatch.context() as lacking:
        lacking.delattr(f'torch.{name}')
        importlib.reload(tracing)
        assert complaint in tracing.eager_refusal()
    importlib.reload(tracing)
    assert tracing.eager_refusal() is None


def test_global_hooks_are_seen():
    from mmcontext.layers._modules import has_global_hooks
    register = torch.nn.modules.module.register_module_forward_hook
    handle = register(lambda module, args, output: None)
    assert has_global_hooks()
    handle.remove()
    assert not has_global_hooks()
