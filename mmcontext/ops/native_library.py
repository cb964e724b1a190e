"""The library of C++ kernels for the CPU, compiled when the package is installed."""
import pathlib
import warnings
from typing import List, Optional

import torch

_FOLDER = pathlib.Path(__file__).resolve().parent
# torch's C++ ABI changes with its minor version, so the name of a library contains the version it
# was built for. Several can coexist.
_STEM = '_native_torch'
_RUNNING = '.'.join(torch.__version__.split('.')[:2])
_warned = False


def _load(folder: pathlib.Path = _FOLDER, running: str = _RUNNING) -> Optional[str]:
    """Load the library built for a version of torch; return why there is none, or None."""
    found = {path.stem[len(_STEM):].replace('_', '.'): path
             for path in sorted(folder.glob(f'{_STEM}*')) if path.suffix in ('.so', '.pyd')}
    if running in found:
        try:
            torch.ops.load_library(str(found[running]))
            return None
        except OSError as error:
            return f'{found[running].name} does not load with torch {torch.__version__}: {error}'
    if found:
        return f'they were built for torch {" and ".join(found)}, this is {torch.__version__}'
    note = folder / '_native_missing.txt'
    if note.exists():
        return note.read_text()
    return 'they were not compiled for this copy of mmcontext'


def _cure() -> str:
    """The command that installs the kernels."""
    clone = _FOLDER.parents[1]
    if (clone / 'pyproject.toml').exists():
        return f'with a C++ compiler run: pip install --no-build-isolation --no-deps -e {clone}'
    return (f'install the wheel of mmcontext-vision {"for torch " + _RUNNING}, or with a C++ '
            'compiler and the source: pip install --no-build-isolation --no-deps '
            '--force-reinstall PATH_OF_THE_SOURCE')


_REASON = _load()
# Why there is no library and what to do, in one sentence; None if it is loaded.
UNAVAILABLE = _REASON and f'the C++ kernels for the CPU are missing: {_REASON}; {_cure()}'


def warn_if_missing() -> None:
    """Warn once per process that something slower is used instead of the C++ kernels."""
    global _warned
    if UNAVAILABLE and not _warned:
        _warned = True
        warnings.warn(f'mmcontext runs more slowly than it could: {UNAVAILABLE}', stacklevel=2)


def instruction_sets() -> List[str]:
    """Instruction sets that both the library and this machine support, the widest first.

    The environment variable ``MMCONTEXT_CPU_ISA`` selects one of them; without it the first is
    used. Empty if the library is missing.
    """
    return [] if UNAVAILABLE else torch.ops.mmcontext_native.instruction_sets()
