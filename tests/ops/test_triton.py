"""Triton kernels without a GPU: results in the interpreter, machine code ahead of time."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion
from triton_cases import DTYPES, all_cases, case_id

from mmcontext.ops import explain, local_aggregation

pytest.importorskip('triton', minversion='3.0')

_HERE = Path(__file__).parent


def _run(script: str, *arguments: str, **environment: str) -> dict:
    """JSON printed by a script of this folder, run in a separate process."""
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        [str(_HERE.parents[1]), str(_HERE), os.environ.get('PYTHONPATH', '')])}
    env.pop('TRITON_INTERPRET', None)
    env.pop('MMCONTEXT_BACKEND', None)
    result = subprocess.run([sys.executable, str(_HERE / script), *arguments],
                            env={**env, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def interpreted() -> dict:
    import triton
    if TorchVersion(triton.__version__) < '3.2' and np.lib.NumpyVersion(np.__version__) >= '2.0.0':
        pytest.skip('with numpy 2 the interpreter of triton 3.1 computes wrong addresses')
    return _run('triton_interpreted.py', TRITON_INTERPRET='1')


@pytest.mark.parametrize(
    'name, dtype, case', [pytest.param(*case, id=case_id(*case[:2])) for case in all_cases()])
def test_interpreted_kernels_match_reference(interpreted, name, dtype, case):
    result = interpreted[case_id(name, dtype)]
    for output, error in result['errors'].items():
        assert error < DTYPES[dtype], output
    assert set(result['dtypes']) == {f'torch.{dtype}'}
    if case['channels_last']:
        assert result['channels_last']


def test_interpreted_operator_is_differentiable_and_deterministic(interpreted):
    fused_error = interpreted['frontend'].pop('fused')
    assert interpreted['frontend'] == {
        'gradcheck': True, 'gradgradcheck': True, 'same_bits': True}
    assert fused_error < 1e-5  # float32


def test_offsets_beyond_int32(interpreted):
    assert len(interpreted['beyond_int32']) == 6
    for output, error in interpreted['beyond_int32'].items():
        assert error < DTYPES['float16'], output


@pytest.mark.parametrize('capability', [80, 90])
def test_kernels_compile_ahead_of_time(capability, tmp_path):
    sizes = _run('triton_compiled.py', str(capability), TRITON_CACHE_DIR=str(tmp_path))
    assert len(sizes) == 19
    assert min(sizes.values()) > 0


def test_refuses_cpu_tensors_with_the_reason(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    x, w = torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 9, 3, 3)
    assert 'need a CUDA device' in explain(x, w, 3, padding=1)['refused']['triton']
    with pytest.raises(RuntimeError, match='need a CUDA device'):
        local_aggregation(x, w, 3, padding=1, backend='triton')
