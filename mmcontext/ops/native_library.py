"""The library of C++ kernels for the CPU, compiled when the package is installed."""
import pathlib
from typing import List, Optional

import torch

_FOLDER = pathlib.Path(__file__).resolve().parent


def _load() -> Optional[str]:
    """Load the compiled library; the reason why there is none, or None."""
    found = sorted(path for pattern in ('_native*.so', '_native*.pyd')
                   for path in _FOLDER.glob(pattern))
    if not found:
        return ('the C++ kernels were not compiled when mmcontext was installed (this needs a '
                'C++17 compiler)')
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return (f'the compiled C++ kernels do not load with torch {torch.__version__}, '
                f'reinstall mmcontext: {error}')
    return None


# Why there is no library; None where it is loaded.
UNAVAILABLE = _load()


def instruction_sets() -> List[str]:
    """Instruction sets that the library and this machine have, the widest first.

    The environment variable ``MMCONTEXT_CPU_ISA`` picks one of them; without it the first is
    used. Empty where the library is not there.
    """
    return [] if UNAVAILABLE else torch.ops.mmcontext_native.instruction_sets()
