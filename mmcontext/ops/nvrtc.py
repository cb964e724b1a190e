"""NVRTC, the run-time CUDA compiler that ships with every CUDA build of torch, through ctypes.

Kernels are compiled at first use on the machine that runs them: neither the CUDA toolkit nor a
host compiler has to be installed.
"""
import ctypes
import functools
import pathlib
import site
import sys
from typing import Dict, Iterator, List, Sequence, Tuple

import torch

# File names by major version of CUDA.
_LINUX = {11: 'libnvrtc.so.11.2', 12: 'libnvrtc.so.12', 13: 'libnvrtc.so.13'}
_WINDOWS = {11: 'nvrtc64_112_0.dll', 12: 'nvrtc64_120_0.dll', 13: 'nvrtc64_130_0.dll'}


class CompilerNotFound(RuntimeError):
    """There is no usable NVRTC; the message says what was looked for."""


def _candidates(major: int) -> Iterator[str]:
    """Names and paths where the library may be, the likeliest first."""
    name = (_WINDOWS if sys.platform == 'win32' else _LINUX).get(major)
    if name is None:
        return
    # The bare name works if torch has already loaded it, or if it is on the loader's path.
    yield name
    beside = pathlib.Path(torch.__file__).parent / 'lib'
    yield from map(str, [beside / name, *sorted(beside.glob(f'libnvrtc-*.so.{name[12:]}'))])
    for folder in {*site.getsitepackages(), *sys.path}:
        yield from map(str, sorted(pathlib.Path(folder or '.').glob(f'nvidia/*/lib/{name}')))


class Nvrtc:
    """The library, loaded.

    Args:
        cuda_version: Version of CUDA that torch was built with, such as '12.8'.

    Raises:
        CompilerNotFound: It is nowhere.
    """

    def __init__(self, cuda_version: str) -> None:
        major = int(cuda_version.split('.')[0])
        for name in _candidates(major):
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise CompilerNotFound(
                f'the library NVRTC of CUDA {cuda_version}, which comes with torch, is not found')
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, function: str, *arguments) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            reason = self._library.nvrtcGetErrorString(code).decode()
            raise RuntimeError(f'{function} failed: {reason}')

    @functools.cached_property
    def version(self) -> Tuple[int, int]:
        """Major and minor version."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call('nvrtcVersion', ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    @functools.cached_property
    def capabilities(self) -> List[int]:
        """Compute capabilities it supports, ten times major plus minor, in ascending order."""
        count = ctypes.c_int()
        self._call('nvrtcGetNumSupportedArchs', ctypes.byref(count))
        values = (ctypes.c_int * count.value)()
        self._call('nvrtcGetSupportedArchs', values)
        return sorted(values)

    def target(self, capability: int) -> str:
        """The value of ``-arch`` for a GPU: machine code if its architecture is supported, else
        PTX of the newest one below it, which the driver compiles.

        Raises:
            RuntimeError: The GPU is older than all supported architectures.
        """
        if capability in self.capabilities:
            return f'sm_{capability}'
        older = [known for known in self.capabilities if known < capability]
        if not older:
            raise RuntimeError(f'NVRTC {self.version[0]}.{self.version[1]} makes no code for '
                               f'compute capability {capability / 10}')
        return f'compute_{older[-1]}'

    def compile(self, name: str, files: Dict[str, str], options: Sequence[str]) -> bytes:
        """Compile one file.

        Args:
            name: The file's name.
            files: Texts of it and of everything that it includes, by name.
            options: Compiler options, including ``-arch=...``.

        Returns:
            Machine code (a cubin), or PTX text for an ``-arch=compute_...``.

        Raises:
            RuntimeError: It does not compile; the message contains the compiler's log.
        """
        headers = [other for other in files if other != name]
        texts = (ctypes.c_char_p * len(headers))(*(files[other].encode() for other in headers))
        names = (ctypes.c_char_p * len(headers))(*(other.encode() for other in headers))
        program = ctypes.c_void_p()
        self._call('nvrtcCreateProgram', ctypes.byref(program), files[name].encode(),
                   name.encode(), len(headers), texts, names)
        try:
            flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), flags):
                log = self._text(program, 'nvrtcGetProgramLog').decode(errors='replace')
                raise RuntimeError(f'{name} does not compile with {" ".join(options)}: {log}')
            portable = any('compute_' in option for option in options)
            return self._text(program, 'nvrtcGetPTX' if portable else 'nvrtcGetCUBIN')
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, getter: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f'{getter}Size', program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(getter, program, text)
        return text.raw


@functools.lru_cache(maxsize=None)
def compiler() -> Nvrtc:
    """The compiler that matches the installed torch.

    Raises:
        CompilerNotFound: There is none.
    """
    if not torch.version.cuda:
        raise CompilerNotFound(f'torch {torch.__version__} is built without CUDA')
    return Nvrtc(torch.version.cuda)
