"""Backend of CUDA kernels for NVIDIA GPUs, and the tiles that their plans are made from."""
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
    """Replace the table of tiles that the kernels' plans are made from.

    Args:
        text: The table, in the format that ``csrc/cuda_plan.h`` describes.

    Raises:
        ValueError: A line cannot be read.
        RuntimeError: The C++ library is not there.
    """
    if UNAVAILABLE:
        raise RuntimeError(UNAVAILABLE)
    torch.ops.mmcontext_native.set_cuda_tiles(text)


@functools.lru_cache(maxsize=None)
def _read_tiles() -> None:
    """Take the tuned tiles of the file that the environment names, else those of the package."""
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
    """All that the host does for a launch of the CUDA kernels, without the launch.

    Served on the CPU, where it is asked for by name. The results are not written: it is there
    to measure the host's time on machines without a GPU.
    """
    name = 'null'

    def refuse(self, x: Tensor, w: Tensor, geometry: Geometry) -> Optional[str]:
        if x.device.type != 'cpu':
            return f'launches are left out for tensors of the CPU alone, they are on {x.device}'
        return self.refuse_dtype(x)


gpu_kernels.before_first_use.append(_read_tiles)
