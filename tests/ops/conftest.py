"""CUDA kernels that run on the CPU for the operators."""
import ctypes
import sys
from pathlib import Path

import pytest
import torch

from mmcontext.ops import gpu_kernels

sys.path.insert(0, str(Path(__file__).parent / 'cuda_emulation'))
from emulator import Emulator  # noqa: E402

LAUNCHER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p,
                            ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)


@pytest.fixture(scope='module')
def emulator(tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp('emulated'))


@pytest.fixture
def emulated(emulator, monkeypatch):
    """Launches of the backend 'null' run on the CPU; the list of kernels launched."""
    handles, launched, failures, libraries = [], [], [], {}

    def handle(*kernel):
        if kernel not in handles:
            handles.append(kernel)
        return handles.index(kernel) + 1

    def launch(function, grid_x, grid_y, grid_z, block, _y, _z, shared, _stream, arguments, _):
        kernel = handles[function - 1]
        launched.append(kernel)
        if kernel not in libraries:
            libraries[kernel] = emulator._compile_kernel(kernel)
        everything = (ctypes.c_ulonglong * 6)(0, 2**64 - 1, 0, 0, 2**64 - 1, 1)
        size = libraries[kernel].parameter_size
        size.restype = ctypes.c_ulonglong
        error = libraries[kernel].launch(
            (ctypes.c_uint * 3)(grid_x, grid_y, grid_z), block, shared,
            ctypes.c_void_p(arguments[0]), ctypes.c_ulonglong(size()), everything, 2)
        failures.append(error)
        return 1 if error else 0

    address = LAUNCHER(launch)
    monkeypatch.setattr(gpu_kernels, 'host_function', handle)
    torch.ops.mmcontext_native.forget_kernels(gpu_kernels.HOST)
    torch.ops.mmcontext_native.set_host_launcher(ctypes.cast(address, ctypes.c_void_p).value)
    yield launched
    assert not any(failures)
    torch.ops.mmcontext_native.set_host_launcher(0)
    torch.ops.mmcontext_native.forget_kernels(gpu_kernels.HOST)
