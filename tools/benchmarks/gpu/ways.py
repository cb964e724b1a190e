"""Several ways to compute one convolution: correctness and speed."""
from typing import Callable, Dict

import torch
from torch import Tensor

from gpu.record import Record

Way = Callable[[Tensor, Tensor], Tensor]
Clock = Callable[[Callable[[], object]], float]
_TOLERANCE = 2e-2


def compare_ways(record: Record, table: str, geometry: tuple, ways: Dict[str, Way], x: Tensor,
                 weight: Tensor, expected: Tensor, clocks: Dict[str, Clock], **columns) -> None:
    """Record a row for every way: microseconds of a forward pass, and of one with both gradients.

    Args:
        record: Receives the rows and the failures.
        table: Name of the table.
        geometry: What is computed; first column.
        ways: Name -> function of ``x`` and ``weight``.
        x, weight: Operands, in bfloat16.
        expected: The result in float32.
        clocks: Prefix of a column -> clock of a step.
        columns: More columns, the same for every way.
    """
    geometry = str(tuple(geometry))
    x, weight = x.requires_grad_(), weight.requires_grad_()
    for name, way in ways.items():
        with record.attempt(f'{name}, {geometry}'):
            y = way(x, weight)
            error = ((y - expected).abs().max() / expected.abs().max()).item()
            if error > _TOLERANCE:
                record.fail(f'{name}, {geometry}', f'error {error:.1e}')
                continue
            grad = torch.randn_like(y)
            steps = {'forward': lambda: way(x.detach(), weight.detach()),
                     'both': lambda: torch.autograd.grad(way(x, weight), (x, weight), grad)}
            times = {f'{prefix}{mode}_us': round(clock(step), 1)
                     for mode, step in steps.items() for prefix, clock in clocks.items()}
            record.row(table, geometry=geometry, way=name, **times, **columns)
