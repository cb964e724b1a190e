"""The table of implementations and the choice among them."""
import os
from typing import Dict, List, NamedTuple, Optional, Protocol, Tuple

import torch
from torch import Tensor

from mmcontext.ops import native_library
from mmcontext.ops.arguments import output_size
from mmcontext.ops.choice import AUTO, cannot_serve, check_way, requested
from mmcontext.ops.layout import layout_of

BACKEND_VARIABLE = 'MMCONTEXT_BACKEND'


class Geometry(NamedTuple):
    """Geometry of one aggregation; every pair is (vertical, horizontal)."""
    kernel_size: Tuple[int, int]
    stride: Tuple[int, int]
    padding: Tuple[int, int]
    dilation: Tuple[int, int]
    interleaved: bool

    def output_size(self, height: int, width: int) -> Tuple[int, int]:
        """Height and width of the output for an input of ``height`` x ``width``."""
        return output_size((height, width), self.kernel_size, self.stride, self.padding,
                           self.dilation)


class Backend(Protocol):
    """One implementation of the aggregation and of its two gradients.

    All tensors of a call share device and dtype. Outputs have the dtype of the inputs;
    sums are accumulated in at least float32.
    """

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        """Why the backend does not support these tensors, or None."""

    def forward(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        """x [B, C, H, W], w [B, G, K*K, Ho, Wo] -> [B, C, Ho, Wo]."""

    def grad_input(self, grad: Tensor, w: Tensor, input_size: Tuple[int, int],
                   geometry: Geometry) -> Tensor:
        """grad [B, C, Ho, Wo], w -> gradient of x [B, C, H, W]."""

    def grad_weight(self, grad: Tensor, x: Tensor, groups: int, geometry: Geometry) -> Tensor:
        """grad, x -> gradient of w [B, groups, K*K, Ho, Wo]."""


# The oracle, differentiable torch: run by the frontend itself if requested by name, never chosen
# otherwise, and not in the table.
REFERENCE = 'reference'

_BACKENDS: Dict[str, Backend] = {}
# The compiled library, if present, handles the first of each by itself.
_PREFERENCE = {'cuda': ('cuda', 'triton', 'torch'), 'cpu': ('native', 'torch')}


def register_backend(name: str, backend: Backend) -> None:
    """Add an implementation; it is used if requested by ``name``."""
    _BACKENDS[name] = backend


def requested_backend(backend: Optional[str]) -> str:
    """The backend requested by an argument or, failing that, by the environment; '' if none."""
    if not backend and not os.environ.get(BACKEND_VARIABLE):
        return ''  # By far the most frequent case.
    way = requested('backend', backend, BACKEND_VARIABLE, _names()).way
    return '' if way == AUTO else way


def _names() -> List[str]:
    return sorted([REFERENCE, *_BACKENDS])


def refusals(x: Tensor, w: Tensor, geometry: Geometry) -> Dict[str, Optional[str]]:
    """For every backend, why it does not support these tensors, or None if it does."""
    return {name: backend.refuse(x, w, geometry) for name, backend in _BACKENDS.items()}


def choose(x: Tensor, w: Tensor, geometry: Geometry, forced: str = '') -> Tuple[str, Backend]:
    """Name and implementation of the backend to use for these tensors.

    Args:
        x: Feature map, or the gradient of the output.
        w: Kernels, or (for their gradient) the feature map.
        geometry: Geometry of the aggregation.
        forced: Backend requested, or '' for the first in the order of preference that supports
            the tensors.

    Raises:
        ValueError: The forced backend is unknown.
        RuntimeError: The forced backend refuses these tensors.
    """
    if forced:
        check_way('backend', forced, _names())
        reason = _BACKENDS[forced].refuse(x, w, geometry)
        if reason is not None:
            raise cannot_serve('backend', forced, 'local_aggregation', reason)
        return forced, _BACKENDS[forced]
    for name in _PREFERENCE.get(x.device.type, ('torch', )):
        backend = _BACKENDS.get(name)
        if backend is not None and backend.refuse(x, w, geometry) is None:
            if x.is_cpu and name != 'native':
                native_library.warn_if_missing()
            return name, backend
    raise RuntimeError(f'no backend of local_aggregation serves {x.dtype} on {x.device}')


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over a neighbourhood are accumulated."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def empty_feature(like: Tensor, channels: int, height: int, width: int,
                  dtype: Optional[torch.dtype] = None) -> Tensor:
    """Uninitialised [B, channels, height, width] in the layout of ``like`` [B, ., ., .]."""
    return torch.empty((like.shape[0], channels, height, width), dtype=dtype or like.dtype,
                       device=like.device, memory_format=layout_of(like))


def empty_kernels(like: Tensor, groups: int, taps: int, height: int, width: int,
                  dtype: Optional[torch.dtype] = None) -> Tensor:
    """Uninitialised [B, groups, taps, height, width], channels-last if ``like`` is.

    On NVIDIA GPUs always contiguous, as the CUDA kernels read and write them.
    """
    if like.device.type == 'cuda' and torch.version.hip is None:
        return torch.empty((like.shape[0], groups, taps, height, width), dtype=dtype or like.dtype,
                           device=like.device)
    kernels = empty_feature(like, groups * taps, height, width, dtype)
    return kernels.unflatten(1, (groups, taps))
