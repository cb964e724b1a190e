"""(c) Tunes the tiles of the CUDA kernels; writes the best in the planner's format."""
import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Callable, List, Tuple

import torch
from bench_ops import Shape, operands, ours

from gpu.backends import cuda_module
from gpu.operators import TOLERANCE, directions, reference_of, shapes
from gpu.record import Record
from gpu.timing import Device

_TASKS = dict(forward='forward', grad_x='grad_input', grad_w='grad_weight')
_FORMS = (('bfloat16', 'nhwc'), ('float32', 'nchw'), ('bfloat16', 'nchw'))
_MOST = 14
# A tile must be faster by this factor to be worth a line.
_GAIN = 0.97

Tile = Tuple[int, int, int]


def candidates(shape: Shape, direction: str) -> List[Tile]:
    """Rows, quads and groups of tiles that cover the target with little waste."""
    rows, cols = (shape.height, shape.width) if direction == 'grad_x' else shape.output
    most = 512 // shape.kernel if direction == 'grad_w' else 256
    quads = math.ceil(cols / 4)
    least = min(most // 8, rows * quads * shape.groups)
    found = []
    for tile_rows, tile_quads, groups in itertools.product(
            sorted({1, 2, 4, 7, 8, 14, 16} & set(range(rows + 1))),
            sorted({quads, math.ceil(quads / 2), math.ceil(quads / 4), 4, 8} &
                   set(range(1, quads + 1))),
            sorted({1, 2, 4, 8} & set(range(shape.groups + 1)))):
        work = tile_rows * tile_quads * groups
        if not least <= work <= most:
            continue
        covered = (math.ceil(rows / tile_rows) * tile_rows * math.ceil(quads / tile_quads) *
                   tile_quads)
        # Halo rows are read again by the next tile.
        halo = (tile_rows + shape.kernel - 1) / tile_rows
        found.append((covered * halo, (tile_rows, tile_quads, groups)))
    return [tile for _, tile in sorted(found)[:_MOST]]


def line(shape: Shape, dtype: str, layout: str, direction: str, tile: Tile) -> str:
    """The lines of the tile table, for both widths of a thread."""
    rows, cols = (shape.height, shape.width) if direction == 'grad_x' else shape.output
    return '\n'.join(
        f'{_TASKS[direction]} {dtype} {shape.kernel} {shape.stride} 1 '
        f'{"last" if layout == "nhwc" else "planar"} {channels} {rows} {cols} {shape.groups}  '
        f'{tile[0]} {tile[1]} {tile[2]}' for channels in (8, 16))


def tiles(record: Record, options: argparse.Namespace) -> None:
    """(c) Tiles of the CUDA kernels; the fastest are written to a file that the planner reads."""
    module = cuda_module()
    if not hasattr(module, 'set_tiles'):
        record.note(left_out='the CUDA backend has no set_tiles' if module else
                    'there is no CUDA backend')
        return
    tune(record, options, module.set_tiles)


def tune(record: Record, options: argparse.Namespace, set_tiles: Callable[[str], None]) -> None:
    """Time the tiles shape by shape; the table is written after every shape."""
    clocks = Device(options.device)
    backend = ours('torch' if options.dry_run else 'cuda')
    stop, best_lines = time.perf_counter() + 0.9 * options.seconds, []
    forms = _FORMS[:1 if options.dry_run else None]
    for (dtype, layout), shape in itertools.product(forms, shapes(options)):
        if time.perf_counter() > stop:
            record.note(out_of_time_before=f'{shape.name}, {dtype} {layout}')
            break
        with record.attempt(f'tiles, {shape.name}, {dtype} {layout}'):
            values = operands(shape, clocks.name, getattr(torch, dtype), layout)
            steps = directions(backend, *values, shape)
            reference = dict(zip(_TASKS, reference_of(*values, shape)))
            for direction, step in steps.items():
                _one(record, clocks, shape, dtype, layout, direction, step, reference[direction],
                     set_tiles, best_lines)
            Path(options.tiles).write_text('\n'.join(
                ['# Measured on ' + (torch.cuda.get_device_name() if clocks.on_gpu else 'nothing'),
                 *best_lines, '']))
    set_tiles('\n'.join(best_lines))


def _one(record: Record, clocks: Device, shape: Shape, dtype: str, layout: str, direction: str,
         step: Callable[[], object], reference: torch.Tensor, set_tiles: Callable[[str], None],
         best_lines: List[str]) -> None:
    set_tiles('')
    default = clocks.gpu_us(step, 12)
    times = {}
    for tile in candidates(shape, direction):
        set_tiles(line(shape, dtype, layout, direction, tile))
        times[tile] = clocks.gpu_us(step, 6)
    # The best few again, against the choice made without a table.
    again = {}
    for tile in sorted(times, key=times.get)[:3]:
        set_tiles(line(shape, dtype, layout, direction, tile))
        result = step()
        result = result[0] if isinstance(result, tuple) else result
        error = ((result - reference).abs().max() / reference.abs().max()).item()
        if not error <= TOLERANCE[dtype]:
            record.fail(f'tile {tile}, {shape.name}, {dtype} {layout} {direction}',
                        f'error {error:.1e}')
            continue
        again[tile] = clocks.gpu_us(step, 20)
    best = min(again, key=again.get, default=None)
    row = dict(shape=shape.name, dtype=dtype, layout=layout, direction=direction,
               default_us=round(default, 2))
    if best and again[best] < _GAIN * default:
        best_lines.append(line(shape, dtype, layout, direction, best))
        row.update(tuned_us=round(again[best], 2), tile=best)
    record.row('tiles', tried=len(times), **row)
