"""From a call to a launch: compiler, kernel cache, driver, and the core with emulated kernels."""
import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import LAUNCHER
from tolerances import SINGLE, assert_close

from mmcontext.ops import (
    cuda_driver,
    explain,
    gpu_kernels,
    kernel_cache,
    local_aggregation,
    nvrtc,
)
from mmcontext.ops.local_aggregation import cuda
from mmcontext.ops.native_library import UNAVAILABLE

KERNEL = ('general.cu', '-DSTORAGE=0 -DTASK=0')
needs_compiler = pytest.mark.skipif(not torch.version.cuda, reason='torch is built without CUDA')
needs_library = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')


@pytest.fixture
def kernel_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(kernel_cache.CACHE_VARIABLE, str(tmp_path / 'kernels'))
    return tmp_path / 'kernels'


@needs_compiler
def test_kernels_are_compiled_once_and_kept(kernel_folder):
    before = gpu_kernels.compilations()
    image = gpu_kernels.compile_kernel(*KERNEL, 'sm_80')
    assert image[:4] == b'\x7fELF' and gpu_kernels.compilations() == before + 1
    assert gpu_kernels.compile_kernel(*KERNEL, 'sm_80') == image
    assert gpu_kernels.compilations() == before + 1
    stored, = kernel_folder.iterdir()
    stored.write_bytes(stored.read_bytes()[:-1])
    assert gpu_kernels.compile_kernel(*KERNEL, 'sm_80') == image
    assert gpu_kernels.compilations() == before + 2
    assert b'.target' in gpu_kernels.compile_kernel(*KERNEL, 'compute_80')


@needs_compiler
def test_a_folder_that_cannot_be_written_costs_a_warning(kernel_folder):
    kernel_folder.write_text('not a folder')
    with pytest.warns(UserWarning, match=kernel_cache.CACHE_VARIABLE):
        assert kernel_cache.kept('any', lambda: b'image') == b'image'


@needs_compiler
def test_code_for_gpus_that_the_compiler_does_not_know():
    compiler = nvrtc.compiler()
    assert compiler.target(80) == 'sm_80'
    assert compiler.target(9990) == f'compute_{compiler.capabilities[-1]}'
    with pytest.raises(RuntimeError, match='capability 1.0'):
        compiler.target(10)
    with pytest.raises(RuntimeError, match='general.cu does not compile .*error'):
        compiler.compile('general.cu', {'general.cu': 'nonsense;'}, ['-arch=sm_80'])


def test_missing_compiler_is_named():
    with pytest.raises(nvrtc.CompilerNotFound, match='NVRTC of CUDA 99.1'):
        nvrtc.Nvrtc('99.1')


def test_driver_is_called_with_whole_pointers(tmp_path):
    library = tmp_path / 'libfake.so'
    subprocess.run(['cc', '-shared', '-fPIC', '-Wall', '-Werror', '-o', str(library),
                    str(Path(__file__).with_name('fake_driver.c'))], check=True)
    driver = cuda_driver.Driver(str(library))
    limits = driver.limits(1)
    assert limits == (90, 132, 232448, 233472)
    context = driver.context(1)
    assert context == 0x7fff12345678
    assert driver.load(b'\x7fELF\0image', 'entry', context, limits.shared_per_block) == (
        0x7ffd00000020)
    shared = ctypes.c_int.in_dll(ctypes.CDLL(str(library)), 'max_dynamic_shared')
    assert shared.value == limits.shared_per_block - 1024
    with pytest.raises(RuntimeError, match='cuDeviceGet: invalid device ordinal'):
        driver.limits(2)
    with pytest.raises(RuntimeError, match='cuModuleGetFunction: error 1'):
        driver.load(b'\x7fELF\0image', 'other', context, limits.shared_per_block)


def _gradients(backend, x, w, cotangent, **geometry):
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = local_aggregation(x, w, **geometry, backend=backend)
    return (y, *torch.autograd.grad(y, (x, w), cotangent))


@needs_library
@pytest.mark.parametrize('share', ['block', 'interleaved'])
def test_operator_with_emulated_kernels_equals_the_reference(emulated, share):
    geometry = dict(kernel_size=3, padding=1, share=share)
    x, w, cotangent = torch.randn(2, 16, 6, 8), torch.randn(2, 2, 9, 6, 8), torch.randn(2, 16, 6, 8)
    expected = _gradients('reference', x.double(), w.double(), cotangent.double(), **geometry)
    for actual, wanted in zip(_gradients('null', x, w, cotangent, **geometry), expected):
        assert_close(actual.double(), wanted, SINGLE)
    assert [(source, f'-DTASK={task}' in defines) for task, (source, defines, _) in
            enumerate(emulated)] == [('local_aggregation.cu', True)] * 3


@needs_library
def test_derivatives_with_emulated_kernels(emulated):
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 1, 6, 3, 2, dtype=torch.float64, requires_grad=True)

    def function(x, w):
        return local_aggregation(x, w, (2, 3), stride=(1, 2), padding=(0, 1), backend='null')

    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w), fast_mode=True)
    assert {source for source, *_ in emulated} == {'general.cu'}


@needs_library
def test_expanded_gradients_are_laid_out_first(emulated):
    x, w = torch.randn(1, 8, 5, 8, requires_grad=True), torch.randn(1, 1, 9, 5, 8)
    local_aggregation(x, w, 3, padding=1, backend='null').sum().backward()
    expected, = torch.autograd.grad(local_aggregation(x, w, 3, padding=1).sum(), x)
    assert_close(x.grad, expected, SINGLE)
    assert 'general.cu' not in {source for source, *_ in emulated}


@needs_library
def test_a_launch_that_fails_says_which(emulated):
    torch.ops.mmcontext_native.set_host_launcher(
        ctypes.cast(FAILING, ctypes.c_void_p).value)
    with pytest.raises(RuntimeError, match='cannot launch general.cu .*error 700'):
        local_aggregation(torch.randn(1, 1, 3, 3).double(), torch.randn(1, 1, 1, 3, 3).double(), 1,
                          backend='null')


FAILING = LAUNCHER(lambda *arguments: 700)


@needs_library
def test_without_a_launcher_nothing_runs_and_reasons_are_given():
    x, w = torch.randn(1, 4, 5, 5), torch.randn(1, 1, 9, 5, 5)
    assert local_aggregation(x, w, 3, padding=1, backend='null').shape == x.shape
    answer = explain(x, w, 3, padding=1)
    assert answer['chosen'] == 'native' and 'cuda' in answer['refused']
    assert explain(x, w, 3, padding=1, backend='null')['chosen'] == 'null'
    with pytest.raises(RuntimeError, match="'cuda' of local_aggregation does not .*: .* on cpu"):
        local_aggregation(x, w, 3, padding=1, backend='cuda')


@needs_library
@pytest.mark.parametrize('op, operands, complaint', [
    ('local_aggregation', ((1, 4, 5, 5), (1, 1, 9, 5, 4)), 'output of 5 x 4 does not follow'),
    ('local_aggregation', ((1, 4, 5, 5), (1, 3, 9, 5, 5)), '3 groups'),
    ('local_aggregation', ((1, 4, 0, 5), (1, 1, 9, 1, 5)), 'output of 1 x 5 does not follow'),
    ('local_aggregation', ((2, 4, 5, 5), (1, 1, 9, 5, 5)), 'w has the shape'),
    ('local_aggregation_grad_input', ((1, 4, 4, 5), (1, 1, 9, 5, 5), [5, 5]), 'gradient of the'),
    ('local_aggregation_grad_weight', ((1, 4, 5, 5), (1, 3, 5, 5), 1), 'gradient of the output'),
])
def test_operators_refuse_sizes_that_reach_beyond_a_tensor(op, operands, complaint):
    operands = [torch.zeros(value) if isinstance(value, tuple) else value for value in operands]
    with pytest.raises(ValueError, match=complaint):
        getattr(torch.ops.mmcontext, op)(*operands, (3, 3), (1, 1), (1, 1), (1, 1), False, '')


@needs_library
def test_backward_needs_the_kernels_that_forward_announced(emulated, monkeypatch):
    announced = []
    monkeypatch.setattr(gpu_kernels, 'expected_on_host', lambda *kernel: announced.append(kernel))
    x = torch.randn(1, 16, 6, 8).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(1, 18, 3, 4).to(memory_format=torch.channels_last).unflatten(1, (2, 9))
    w.requires_grad_()
    y = local_aggregation(x, w, 3, stride=2, padding=1, backend='null')
    y.backward(torch.ones_like(y))
    assert [kernel[:2] for kernel in emulated[1:]] == announced


@needs_library
def test_tiles_are_checked_by_line():
    with pytest.raises(ValueError, match='line 2'):
        cuda.set_tiles('# comment\nforward float32 7')
    cuda.set_tiles('')
