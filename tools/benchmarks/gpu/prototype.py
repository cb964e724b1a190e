"""A compiled prototype of the aggregation, given by ``--prototype``, as an additional column.

The library exports ``agg(bf16, direction, K, stride, vector, a, w, out, C, G, H, W, Ho, Wo,
interleaved, tile rows, tile quads, groups per block, batch, threads, stream)`` and returns 0, a
CUDA error, or a negative number for what it does not support. Directions are 0 forward,
1 gradient of x and 2 gradient of w.
"""
import ctypes
import functools
from typing import Callable, Dict, List, Tuple

import torch
from bench_ops import Shape
from torch import Tensor

# Rows and quads (of 4 columns) of a tile, groups per block.
_TILES = ((7, 8, 1), (8, 8, 1), (7, 7, 1), (14, 7, 1), (14, 4, 2), (7, 2, 4), (14, 8, 1))
_MAX_THREADS = {0: 384, 1: 384, 2: 512}


class Prototype:
    """Launches of a prototype library.

    Args:
        path: The compiled library.
    """

    def __init__(self, path: str) -> None:
        self._call = ctypes.CDLL(path).agg

    def directions(self, x: Tensor, w: Tensor, grad: Tensor,
                   shape: Shape) -> Dict[str, List[Tuple[Callable[[], int], Callable]]]:
        """For every direction and tile that supports it, a launch and a getter of its result."""
        operands = {'forward': (x, w, torch.empty_like(grad)),
                    'grad_x': (grad, w, torch.empty_like(x)),
                    'grad_w': (grad, x, torch.empty_like(w))}
        steps = {}
        for number, (name, tensors) in enumerate(operands.items()):
            launches = [self._launch(number, tensors, shape, tile) for tile in _TILES]
            steps[name] = [(launch, functools.partial(_result, launch, tensors[2]))
                           for launch in launches if launch() == 0]
        return steps

    def _launch(self, direction: int, tensors: tuple, shape: Shape,
                tile: tuple) -> Callable[[], int]:
        rows, cols = shape.output
        height, width = shape.height, shape.width
        if direction == 1:  # the gradient of x is an aggregation of that of y
            rows, cols, height, width = height, width, rows, cols
        tile_rows, quads, groups = tile
        quads = min(quads, -(-cols // 4))
        tile_rows = min(tile_rows, rows)
        if direction == 2:
            threads = _MAX_THREADS[2]
        else:
            halves = max(shape.channels // shape.groups // 8, 1)
            threads = -(-tile_rows * quads * halves * groups // 32) * 32
        vector = 4 if width % 4 == 0 and cols % 4 == 0 else 2 if cols % 2 == width % 2 == 0 else 1
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        integers = (shape.channels, shape.groups, height, width, rows, cols,
                    int(shape.share == 'interleaved'), tile_rows, quads, groups, shape.batch,
                    threads)

        def launch() -> int:
            if threads > _MAX_THREADS[direction]:
                return -1
            stream = torch.cuda.current_stream().cuda_stream if tensors[0].is_cuda else None
            return self._call(int(tensors[0].dtype == torch.bfloat16), direction, shape.kernel,
                              shape.stride, vector, *addresses, *integers,
                              ctypes.c_void_p(stream))
        return launch


def _result(launch: Callable[[], int], target: Tensor) -> Tensor:
    target.fill_(float('nan'))
    launch()
    return target.clone()
