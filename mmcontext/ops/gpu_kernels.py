"""What the CUDA kernels of all operators need from Python: a compiler, a driver, a disk cache.

The sources are in ``csrc/cuda``. Each kernel is compiled by NVRTC at its first use on a GPU
architecture and cached on disk. The C++ library (``csrc/gpu.cpp``) plans and launches, and calls
back here for a GPU or a kernel that it does not know yet. No tensor size is compiled in.
"""
import concurrent.futures
import functools
import os
import pathlib
import threading
from typing import Callable, Dict, List, Tuple

import torch

from mmcontext.ops import cuda_driver, kernel_cache, nvrtc
from mmcontext.ops.native_library import UNAVAILABLE

SOURCES = pathlib.Path(__file__).resolve().parent / 'csrc/cuda'
# The CPU in place of a GPU: launches are planned as for an H100 but not made, except in tests that
# provide a launcher (``set_host_launcher``) and handles for it.
HOST = -1
_HOST_LIMITS = cuda_driver.Limits(90, 132, 232448, 233472)
_OLDEST_CAPABILITY = 70

# Called when a GPU is used for the first time.
before_first_use: List[Callable[[], None]] = []

_compilations = 0
_images: Dict[Tuple[str, str, str], 'concurrent.futures.Future[bytes]'] = {}
_lock = threading.Lock()


def host_function(source: str, defines: str, entry: str) -> int:
    """The handle of a kernel on the host, where nothing is launched."""
    return 1


def expected_on_host(source: str, defines: str) -> None:
    """Called with the kernels that a backward pass will need."""


def compilations() -> int:
    """Number of kernels that this process has compiled, not counting those read from disk."""
    return _compilations


@functools.lru_cache(maxsize=None)
def _files() -> Dict[str, str]:
    return {path.name: path.read_text() for path in sorted(SOURCES.glob('*.cu*'))}


def compile_kernel(source: str, defines: str, target: str) -> bytes:
    """Compile one kernel, or read it from disk.

    Args:
        source: File in ``csrc/cuda``.
        defines: Compiler options that specialise it, separated by spaces.
        target: Value of ``-arch``.
    """
    compiler, files = nvrtc.compiler(), _files()
    options = [f'-arch={target}', '--std=c++17', *defines.split()]

    def make() -> bytes:
        global _compilations
        image = compiler.compile(source, files, options)
        with _lock:
            _compilations += 1
        return image

    return kernel_cache.kept(repr((source, files, options, compiler.version)), make)


@functools.lru_cache(maxsize=None)
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1),
                                                 thread_name_prefix='nvrtc')


def _image(source: str, defines: str, target: str) -> 'concurrent.futures.Future[bytes]':
    """A kernel that a background thread compiles, started now or earlier."""
    key = (source, defines, target)
    with _lock:
        if key not in _images:
            _images[key] = _pool().submit(compile_kernel, *key)
        return _images[key]


def _refusal(device: int) -> str:
    """Why the kernels cannot run on a GPU; empty if they can."""
    if torch.version.hip:
        return 'the CUDA kernels run on NVIDIA GPUs, this torch is built for ROCm'
    try:
        compiler = nvrtc.compiler()
        capability = cuda_driver.driver().limits(device).capability
        if capability < _OLDEST_CAPABILITY:
            return ('the CUDA kernels need compute capability '
                    f'{_OLDEST_CAPABILITY / 10} or later, GPU {device} has {capability / 10}')
        compiler.target(capability)
    except (OSError, RuntimeError) as error:
        return f'the CUDA kernels cannot be compiled or loaded here: {error}'
    return ''


def _prepare_gpu(device: int) -> Tuple[str, List[int]]:
    """What the C++ library needs to know about a GPU; see ``prepare_gpu`` in ``csrc/gpu.cpp``."""
    if device == HOST:
        return '', [*_HOST_LIMITS, 0, 0, 0, 0]
    reason = _refusal(device)
    if reason:
        return reason, []
    for prepare in before_first_use:
        prepare()
    driver = cuda_driver.driver()
    return '', [*driver.limits(device), driver.context(device), driver.address('cuLaunchKernel'),
                driver.address('cuCtxSetCurrent'), cuda_driver.stream_function()]


def _build_kernel(source: str, defines: str, entry: str, device: int) -> int:
    """Handle of a kernel's function on a GPU."""
    if device == HOST:
        return host_function(source, defines, entry)
    driver = cuda_driver.driver()
    limits = driver.limits(device)
    image = _image(source, defines, nvrtc.compiler().target(limits.capability)).result()
    return driver.load(image, entry, driver.context(device), limits.shared_per_block)


def _expect_kernel(source: str, defines: str, device: int) -> None:
    """Start compiling a kernel that will be needed soon."""
    if device == HOST:
        expected_on_host(source, defines)
    else:
        capability = cuda_driver.driver().limits(device).capability
        _image(source, defines, nvrtc.compiler().target(capability))


def _current_stream(device: int) -> int:
    return torch.cuda.current_stream(device).cuda_stream


if not UNAVAILABLE:
    _LIBRARY = torch.library.Library('mmcontext_native', 'IMPL')
    for _name, _function in (('prepare_gpu', _prepare_gpu), ('build_kernel', _build_kernel),
                             ('expect_kernel', _expect_kernel),
                             ('current_stream', _current_stream)):
        _LIBRARY.impl(_name, _function, 'CompositeExplicitAutograd')
