"""(b) Batch norm, residual and activation with the CUDA kernels: correctness and speed."""
import argparse
import itertools
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor

from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops.batch_norm_act import batch_norm_act, explain_batch_norm_act

_TOLERANCE = {'float32': 5e-6, 'bfloat16': 1.6e-2, 'float16': 2e-3}
# [batch, channels, height, width]
_CHECKED = ((2, 8, 5, 7), (3, 48, 13, 9), (2, 264, 9, 8), (64, 64, 56, 56), (8, 2048, 7, 7),
            (64, 128, 1, 1))
_TIMED = ((64, 64, 112, 112), (64, 64, 56, 56), (64, 256, 56, 56), (64, 512, 28, 28),
          (64, 1024, 14, 14), (64, 2048, 7, 7), (64, 512, 7, 7))
_FORMS = (('none', False), ('relu', False), ('silu', False), ('none', True), ('relu', True))


def operands(shape: Tuple[int, ...], dtype: torch.dtype, device: str,
             residual: bool) -> Tuple[List[Tensor], List[Tensor]]:
    """x, cotangent and residual; weight, bias and running statistics."""
    def tensor(shift: float = 0.) -> Tensor:
        return (torch.randn(shape, device=device) + shift).to(dtype).contiguous(
            memory_format=torch.channels_last)

    channels = shape[1]
    vectors = [torch.rand(channels, device=device) + 0.5 for _ in range(4)]
    return [tensor(3.), tensor(), *([tensor()] if residual else [])], vectors


def run(maps: List[Tensor], vectors: List[Tensor], training: bool, activation: str,
        method: str) -> Tuple[Tensor, ...]:
    """Output, all gradients and the running statistics."""
    (x, grad, *residual), (weight, bias, mean, variance) = maps, vectors
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias, *residual)]
    running = [mean.clone(), variance.clone()]
    y = batch_norm_act(*leaves[:3], *running, None, training, 0.1, 1e-5, activation,
                       leaves[3] if residual else None, method)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad), *running)


def error(found: Tuple[Tensor, ...], expected: Tuple[Tensor, ...]) -> float:
    """Largest error over the largest value.

    One element in 100,000 of a map, and one more, may differ: a ReLU whose argument is zero up to
    rounding may be on in one precision and off in another.
    """
    worst = 0.
    for a, e in zip(found, expected):
        spared = 1 + a.numel() // 100000 if a.dim() == 4 else 0
        largest = (a - e).abs().flatten().topk(spared + 1).values[-1]
        worst = max(worst, (largest / e.abs().max().clamp_min(1e-30)).nan_to_num(1e9).item())
    return worst


def judge(record: Record, what: str, runs: Tuple[Tuple[Tensor, ...], ...],
          expected: Tuple[Tensor, ...], tolerance: float) -> float:
    """The error of the first of two runs; a failure if it is too large or the runs differ."""
    found, again = runs
    value = error(found, expected)
    if not value <= tolerance:
        record.fail(what, f'error {value:.1e}')
    if not all(map(torch.equal, found, again)):
        record.fail(what, 'two runs differ')
    return value


def check(record: Record, device: str, method: str) -> None:
    """All forms against float64 on the same device, and whether two runs are bit-identical."""
    worst: Dict[str, float] = {}
    for shape, dtype, (activation, residual), training in itertools.product(
            _CHECKED, _TOLERANCE, _FORMS, (True, False)):
        what = f'norm {shape} {dtype} {activation} residual={residual} training={training}'
        with record.attempt(what):
            maps, vectors = operands(shape, getattr(torch, dtype), device, residual)
            runs = tuple(run(maps, vectors, training, activation, method) for _ in range(2))
            expected = run([t.double() for t in maps], [t.double() for t in vectors], training,
                           activation, 'torch')
            value = judge(record, what, runs, expected, _TOLERANCE[dtype])
            worst[dtype] = max(worst.get(dtype, 0.), value)
    record.note(worst=worst)


def _steps(shape: Tuple[int, ...], activation: str, residual: bool, method: str,
           device: str) -> Dict[str, Callable[[], object]]:
    (x, grad, *added), vectors = operands(shape, torch.bfloat16, device, residual)
    leaves = [t.detach().requires_grad_() for t in (x, *vectors[:2], *added)]

    def forward() -> Tensor:
        return batch_norm_act(*leaves[:3], *vectors[2:], None, True, 0.1, 1e-5, activation,
                              leaves[3] if residual else None, method)

    y = forward()
    return dict(forward=forward,
                backward=lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True))


def main(record: Record, options: argparse.Namespace) -> None:
    """GPU microseconds in training, bf16, against torch's functions and the floor.

    The floor: three passes over the map forwards and five backwards, one and two more with a
    residual, at the bandwidth of a copy.
    """
    clocks = Device(options.device)
    method = 'torch' if options.dry_run else 'cuda'
    sample = operands((2, 8, 4, 4), torch.bfloat16, options.device, False)[0][0]
    reason = explain_batch_norm_act(sample)['refused'].get('cuda')
    if reason and not options.dry_run:
        record.fail('batch norm by the kernels', reason)
        return
    if not options.dry_run:
        check(record, options.device, method)
    bandwidth = clocks.copy_bandwidth()
    for shape in ((2, 8, 4, 4), ) if options.dry_run else _TIMED:
        for activation, residual in (('relu', False), ('relu', True)):
            with record.attempt(f'{shape} {activation} residual={residual}'):
                size = 2 * torch.Size(shape).numel() * 1e6 / bandwidth
                row = dict(shape=shape, form=f'{activation}, residual' if residual else activation,
                           floor=f'{(3 + residual) * size:.0f} / {(5 + 2 * residual) * size:.0f}')
                for name in (method, 'torch'):
                    steps = _steps(shape, activation, residual, name, options.device)
                    row[name] = ' / '.join(f'{clocks.gpu_us(steps[mode], 10):.0f}'
                                           for mode in ('forward', 'backward'))
                record.row('norms', **row)
