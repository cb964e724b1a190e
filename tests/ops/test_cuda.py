"""From a call to a launch: compiler, kept kernels, driver, and the core with emulated kernels."""
import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmcontext.ops import cuda_driver, explain, kernel_cache, local_aggregation, nvrtc
from mmcontext.ops.local_aggregation import cuda
from mmcontext.ops.native_library import UNAVAILABLE

sys.path.insert(0, str(Path(__file__).parent / 'cuda_emulation'))
from emulator import PARAMETERS, Emulator  # noqa: E402

KERNEL = ('general.cu', '-DSTORAGE=0 -DTASK=0')
LAUNCHER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p,
                            ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
needs_compiler = pytest.mark.skipif(not torch.version.cuda, reason='torch is built without CUDA')
needs_library = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')


@pytest.fixture
def kernel_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(kernel_cache.CACHE_VARIABLE, str(tmp_path / 'kernels'))
    return tmp_path / 'kernels'


@needs_compiler
def test_kernels_are_compiled_once_and_kept(kernel_folder):
    before = cuda.compilations()
    image = cuda.compile_kernel(*KERNEL, 'sm_80')
    assert image[:4] == b'\x7fELF' and cuda.compilations() == before + 1
    assert cuda.compile_kernel(*KERNEL, 'sm_80') == image and cuda.compilations() == before + 1
    stored, = kernel_folder.iterdir()
    stored.write_bytes(stored.read_bytes()[:-1])
    assert cuda.compile_kernel(*KERNEL, 'sm_80') == image and cuda.compilations() == before + 2
    assert b'.target' in cuda.compile_kernel(*KERNEL, 'compute_80')


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


@pytest.fixture(scope='module')
def emulator(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp('emulated'))


@pytest.fixture
def emulated(emulator, monkeypatch):
    """Launches of the backend 'null' run on the CPU; the list of kernels launched."""
    handles, launched = [], []

    def handle(*kernel):
        if kernel not in handles:
            handles.append(kernel)
        return handles.index(kernel) + 1

    def launch(function, grid_x, grid_y, grid_z, block, _y, _z, shared, _stream, arguments, _):
        kernel = handles[function - 1]
        launched.append(kernel)
        emulator.compile_kernels([kernel])
        return emulator.launch(kernel, (grid_x, grid_y, grid_z), block, shared, arguments[0])

    address = LAUNCHER(launch)
    monkeypatch.setattr(cuda, 'host_function', handle)
    torch.ops.mmcontext_native.forget_kernels(cuda.HOST)
    torch.ops.mmcontext_native.set_host_launcher(ctypes.cast(address, ctypes.c_void_p).value)
    yield launched
    torch.ops.mmcontext_native.set_host_launcher(0)
    torch.ops.mmcontext_native.forget_kernels(cuda.HOST)
