"""Backend of C++ kernels for the CPU, compiled when the package is installed.

The library also holds the CPU and autograd kernels of the registered operators, so that a call
that falls to it does not come back to Python. Without it (no compiler at install time) the
backend refuses everything with the reason, and the next one serves.
"""
import pathlib
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from mmcontext.ops.local_aggregation import operators
from mmcontext.ops.local_aggregation.backends import Geometry

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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


_UNAVAILABLE = _load()
if _UNAVAILABLE is None:
    # What the library calls where the choice of a backend falls on another one.
    _LIBRARY = torch.library.Library('mmcontext_native', 'IMPL')
    _LIBRARY.impl('chosen_forward', operators._forward, 'CPU')
    _LIBRARY.impl('chosen_grad_input', operators._grad_input, 'CPU')
    _LIBRARY.impl('chosen_grad_weight', operators._grad_weight, 'CPU')


def instruction_sets() -> List[str]:
    """Instruction sets that the library and this machine have, the widest first.

    The environment variable ``MMCONTEXT_CPU_ISA`` picks one of them; without it the first is
    used. Empty where the library is not there.
    """
    return [] if _UNAVAILABLE else torch.ops.mmcontext_native.instruction_sets()


class NativeBackend:
    """Vectorised C++ kernels for any geometry and layout; threads as set in torch."""

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        if _UNAVAILABLE:
            return _UNAVAILABLE
        if x.device.type != 'cpu':
            return f'the C++ kernels run on the CPU, the tensors are on {x.device}'
        if x.dtype not in DTYPES:
            return f'the C++ kernels have no {x.dtype}'
        return None

    def forward(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.mmcontext_native.forward(x, w, *geometry)

    def grad_input(self, grad: Tensor, w: Tensor, input_size: Tuple[int, int],
                   geometry: Geometry) -> Tensor:
        return torch.ops.mmcontext_native.grad_input(grad, w, input_size, *geometry)

    def grad_weight(self, grad: Tensor, x: Tensor, groups: int, geometry: Geometry) -> Tensor:
        return torch.ops.mmcontext_native.grad_weight(grad, x, groups, *geometry)
