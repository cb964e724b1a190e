"""Backend of C++ kernels for the CPU.

The library also holds the CPU and autograd kernels of the registered operators, so that a call
that falls to it does not come back to Python. Without it (no compiler at install time) the
backend refuses everything with the reason, and the next one serves.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from mmcontext.ops.local_aggregation import operators
from mmcontext.ops.local_aggregation.backends import Geometry
from mmcontext.ops.native_library import UNAVAILABLE

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

if not UNAVAILABLE:
    # What the library calls where the choice of a backend falls on another one.
    _LIBRARY = torch.library.Library('mmcontext_native', 'IMPL')
    _LIBRARY.impl('chosen_forward', operators._forward, 'CPU')
    _LIBRARY.impl('chosen_grad_input', operators._grad_input, 'CPU')
    _LIBRARY.impl('chosen_grad_weight', operators._grad_weight, 'CPU')


class NativeBackend:
    """Vectorised C++ kernels for any geometry and layout; threads as set in torch."""

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        if UNAVAILABLE:
            return UNAVAILABLE
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
