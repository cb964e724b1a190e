"""The library with this package's operator for onnxruntime, compiled on demand."""
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List

from mmcontext.ops.kernel_cache import kept
from mmcontext.utils.errors import UserError

# The operator's domain in a graph, and the library's name.
DOMAIN = 'mmcontext'
LIBRARY_NAME = 'mmcontext_onnxruntime.so'

_HERE = Path(__file__).resolve().parent / 'csrc'
_KERNELS = _HERE.parents[1] / 'ops/csrc'
_FLAGS = ['-O3', '-g0', '-std=c++17', '-fPIC', '-fvisibility=hidden', '-ffp-contract=fast', '-w',
          '-DMMCONTEXT_WITHOUT_TORCH', f'-I{_KERNELS}']


def _sources() -> List[Path]:
    """The kernels of the aggregation, which do not depend on torch, and the operator."""
    return [*(_KERNELS / name for name in ('plans.cpp', 'instruction_sets.cpp', 'pixel_plan.cpp',
                                           'planar_plan.cpp')),
            *sorted(_KERNELS.glob('kernels_*.cpp')), *sorted(_HERE.glob('*.cpp'))]


def _run(command: List[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f'the library for onnxruntime needs a C++ compiler, and {command[0]} '
                        f'cannot be run ({error}); the environment variable CXX names another '
                        'one') from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if 'error' in line]
        raise UserError(f'{command[0]} cannot compile the library for onnxruntime: '
                        f'{(lines or done.stderr.splitlines() or ["no message"])[0]}')


def _compile(compiler: List[str], flags: List[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        def compiled(source: Path) -> str:
            result = str(Path(folder, f'{source.stem}.o'))
            _run([*compiler, *flags, '-c', str(source), '-o', result])
            return result

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, _sources()))
        library = Path(folder, LIBRARY_NAME)
        _run([*compiler, '-shared', *objects, '-o', str(library)])
        return library.read_bytes()


def write_library(folder: str) -> Path:
    """Write the library with the operator ``mmcontext::LocalAggregation`` for onnxruntime.

    It contains the CPU kernels of :func:`mmcontext.ops.local_aggregation`, needs neither torch
    nor Python, and works with onnxruntime 1.17 and newer on machines of this architecture. It is
    compiled once (two minutes on one core; with ``CXX`` and ``CXXFLAGS`` if set in the
    environment) and cached with the other compiled kernels.

    Args:
        folder: Folder in which ``mmcontext_onnxruntime.so`` is written.

    Returns:
        The file.

    Raises:
        UserError: There is no C++ compiler, or it cannot compile it.
    """
    files = sorted(path for where in (_HERE, _KERNELS) for path in where.iterdir()
                   if path.suffix in ('.cpp', '.h', '.inc'))
    content = hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()
    compiler = shlex.split(os.environ.get('CXX') or 'c++')
    flags = _FLAGS + shlex.split(os.environ.get('CXXFLAGS') or '')
    image = kept(' '.join([*compiler, *flags, content, platform.machine()]),
                 lambda: _compile(compiler, flags))
    path = Path(folder, LIBRARY_NAME)
    # A program may have loaded the existing one.
    fresh = path.with_suffix(f'.{os.getpid()}')
    fresh.write_bytes(image)
    os.replace(fresh, path)
    return path
