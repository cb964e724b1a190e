"""Backend of CUDA kernels for NVIDIA GPUs, and its table of tuned tiles."""
import functools
import os
import pathlib
from typing import Optional

import torch
from torch import Tensor

from mmcontext.ops import gpu_kernels
from mmcontext.ops.local_aggregation.backends import Geometry
from mmcontext.ops.local_aggregation.native import CompiledBackend
from mmcontext.ops.native_library import UNAVAILABLE

TILES_VARIABLE = 'MMCONTEXT_CUDA_TILES'


def set_tiles(text: str) -> None:
    """Replace the table of tuned tiles.

    Args:
        text: The table, in the format described in ``csrc/cuda_plan.h``.

    Raises:
        ValueError: A line cannot be parsed.
        RuntimeError: The C++ library is missing.
    """
    if UNAVAILABLE:
        raise RuntimeError(UNAVAILABLE)
    torch.ops.mmcontext_native.set_cuda_tiles(text)


@functools.lru_cache(maxsize=None)
def _read_tiles() -> None:
    """Read the tuned tiles from the file that the environment names, else from the package."""
    named = os.environ.get(TILES_VARIABLE)
    path = pathlib.Path(named) if named else gpu_kernels.SOURCES / 'tiles.txt'
    if named or path.exists():
        set_tiles(path.read_text())


class CudaBackend(CompiledBackend):
    """CUDA kernels for NVIDIA GPUs, of any geometry and layout."""
    name = 'cuda'

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        if x.device.type != 'cuda':
            return f'the CUDA kernels run on a GPU, the tensors are on {x.device}'
        return self.refuse_dtype(x) or (
            torch.ops.mmcontext_native.gpu_refusal(x.device.index) or None)


class NullBackend(CompiledBackend):
    """Everything that the host does for a launch of the CUDA kernels, without the launch.

    Runs on the CPU if requested by name. The results are not written: its purpose is to measure
    the host overhead on machines without a GPU.
    """
    name = 'null'

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        if x.device.type != 'cpu':
            return f'launches are left out for tensors of the CPU alone, they are on {x.device}'
        return self.refuse_dtype(x)


gpu_kernels.before_first_use.append(_read_tiles)
