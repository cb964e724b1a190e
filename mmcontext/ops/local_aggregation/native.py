"""Backends of the compiled library: C++ kernels for the CPU here, CUDA kernels in ``cuda.py``.

The library also holds the derivatives of the registered operators, autocast and the checks of
sizes (``csrc/operators.cpp``), so that a call handled there does not come back to Python. Without
it (no compiler at install time) these backends refuse every call with the reason, the next one is
used, and ``portable.py`` replaces the rest of the library.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from mmcontext.ops.local_aggregation import operators
from mmcontext.ops.local_aggregation.backends import Geometry
from mmcontext.ops.native_library import UNAVAILABLE

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class CompiledBackend:
    """The operators, with the library's kernels requested by name."""
    name: str

    def refuse_dtype(self, x: Tensor) -> Optional[str]:
        """Why the library does not support a tensor like ``x`` on any device, or None."""
        if UNAVAILABLE:
            return UNAVAILABLE
        return None if x.dtype in DTYPES else f'the compiled kernels have no {x.dtype}'

    def forward(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return operators.forward_op(x, w, *geometry, self.name)

    def grad_input(self, grad: Tensor, w: Tensor, input_size: Tuple[int, int],
                   geometry: Geometry) -> Tensor:
        return operators.grad_input_op(grad, w, input_size, *geometry, self.name)

    def grad_weight(self, grad: Tensor, x: Tensor, groups: int, geometry: Geometry) -> Tensor:
        return operators.grad_weight_op(grad, x, groups, *geometry, self.name)


class NativeBackend(CompiledBackend):
    """Vectorised C++ kernels for any geometry and layout; threads as set in torch."""
    name = 'native'

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        if x.device.type != 'cpu':
            return f'the C++ kernels run on the CPU, the tensors are on {x.device}'
        return self.refuse_dtype(x)
