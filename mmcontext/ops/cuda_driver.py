"""The few functions of the CUDA driver API that load kernels, called through ctypes."""
import ctypes
import functools
import sys
from typing import NamedTuple

import torch

# Attribute numbers for cuDeviceGetAttribute, and for cuFuncGetAttribute and cuFuncSetAttribute.
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76
_SHARED_PER_MULTIPROCESSOR, _SHARED_PER_BLOCK = 81, 97
_STATIC_SHARED, _MAX_DYNAMIC_SHARED = 1, 8


class Limits(NamedTuple):
    """The GPU properties that the plan of a kernel depends on."""
    capability: int  # ten times major plus minor
    multiprocessors: int
    shared_per_block: int  # bytes, the most that a block can ask for
    shared_per_multiprocessor: int


class Driver:
    """The driver's library, loaded.

    Args:
        name: The library's file.

    Raises:
        OSError: There is no such library.
    """

    def __init__(self, name: str) -> None:
        self._library = ctypes.CDLL(name)
        self._call('cuInit', 0)

    def _call(self, function: str, *arguments) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            reason = text.value.decode() if text.value else f'error {code}'
            raise RuntimeError(f'the CUDA driver refuses {function}: {reason}')

    def address(self, function: str) -> int:
        """Address of a function."""
        return ctypes.cast(getattr(self._library, function), ctypes.c_void_p).value

    def device(self, index: int) -> ctypes.c_int:
        """Handle of a GPU."""
        handle = ctypes.c_int()
        self._call('cuDeviceGet', ctypes.byref(handle), index)
        return handle

    def limits(self, index: int) -> Limits:
        """Properties of a GPU."""
        device = self.device(index)

        def attribute(number: int) -> int:
            value = ctypes.c_int()
            self._call('cuDeviceGetAttribute', ctypes.byref(value), number, device)
            return value.value

        return Limits(10 * attribute(_MAJOR) + attribute(_MINOR), attribute(_MULTIPROCESSORS),
                      attribute(_SHARED_PER_BLOCK), attribute(_SHARED_PER_MULTIPROCESSOR))

    def context(self, index: int) -> int:
        """The GPU's primary context, which torch uses too; retained until the process ends."""
        context = ctypes.c_void_p()
        self._call('cuDevicePrimaryCtxRetain', ctypes.byref(context), self.device(index))
        return context.value

    def load(self, image: bytes, entry: str, context: int, shared_per_block: int) -> int:
        """Load a kernel and allow it all the shared memory that a block can have.

        Args:
            image: A cubin, or PTX.
            entry: Name of the kernel's function.
            context: From :meth:`context`.
            shared_per_block: From :meth:`limits`.

        Returns:
            Handle of the function, valid until the process ends.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call('cuCtxPushCurrent_v2', ctypes.c_void_p(context))
        try:
            self._call('cuModuleLoadData', ctypes.byref(module), image)
            self._call('cuModuleGetFunction', ctypes.byref(function), module, entry.encode())
            static = ctypes.c_int()
            self._call('cuFuncGetAttribute', ctypes.byref(static), _STATIC_SHARED, function)
            self._call('cuFuncSetAttribute', function, _MAX_DYNAMIC_SHARED,
                       shared_per_block - static.value)
        finally:
            self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return function.value


@functools.lru_cache(maxsize=None)
def driver() -> Driver:
    """The driver of this machine.

    Raises:
        OSError: There is none.
    """
    return Driver('nvcuda.dll' if sys.platform == 'win32' else 'libcuda.so.1')


def stream_function() -> int:
    """Address of torch's C function that returns the current stream; 0 if it has none (2.1)."""
    name = 'torch_cuda.dll' if sys.platform == 'win32' else 'libtorch_cuda.so'
    try:
        library = ctypes.CDLL(f'{torch.__path__[0]}/lib/{name}')
        function = library.aoti_torch_get_current_cuda_stream
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value
