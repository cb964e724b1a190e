"""(b) GPU time of the aggregation, separately for each direction, against alternatives."""
import argparse
import importlib
from typing import Callable, Dict, Optional, Tuple

import torch
from bench_ops import Shape, operands, ours, shift_and_add
from torch import Tensor

from gpu.backends import available, refusals
from gpu.record import Record
from gpu.timing import Device

BATCH = 32
SHAPES = [
    Shape('CedNet-50 stage 1', BATCH, 64, 4, 56, 56, 7),
    Shape('stem', BATCH, 32, 2, 112, 112, 7),
    Shape('CedNet-50 stage 2', BATCH, 128, 8, 28, 28, 7),
    Shape('CedNet-50 stage 3', BATCH, 256, 16, 14, 14, 7),
    Shape('CedNet-50 stage 4', BATCH, 512, 32, 7, 7, 7),
    Shape('CedNet-50 stage 2 first', BATCH, 128, 8, 56, 56, 7, 2),
    Shape('CoTNet-50 stage 1', BATCH, 64, 8, 56, 56, 3, 1, 'interleaved'),
    Shape('CoTNet-50 stage 3', BATCH, 256, 32, 14, 14, 3, 1, 'interleaved'),
    Shape('FPN level', 2, 256, 16, 200, 304, 7),
]
# Half precision in the layouts that occur in a network under AMP.
FORMS = (('float32', 'nchw'), ('bfloat16', 'nchw'), ('bfloat16', 'nhwc'), ('float32', 'nhwc'),
         ('float16', 'nhwc'))
_TINY = [Shape('tiny', 1, 16, 1, 9, 9, 7),
         Shape('tiny interleaved', 1, 16, 2, 8, 8, 3, 2, 'interleaved')]
TOLERANCE = {'float32': 1e-5, 'bfloat16': 1.6e-2, 'float16': 2e-3}

Run = Callable[[Tensor, Tensor, Shape], Tensor]


def shapes(options: argparse.Namespace) -> list:
    """The shapes of the table, or tiny ones."""
    return _TINY if options.dry_run else SHAPES


def directions(run: Run, x: Tensor, w: Tensor, grad: Tensor,
               shape: Shape) -> Dict[str, Callable[[], object]]:
    """Forward, gradient of x and gradient of w, separately."""
    def gradient(of_x: bool) -> Callable[[], object]:
        a, b = x.detach().requires_grad_(of_x), w.detach().requires_grad_(not of_x)
        y = run(a, b, shape)
        return lambda: torch.autograd.grad(y, a if of_x else b, grad, retain_graph=True)

    return {'forward': lambda: run(x, w, shape), 'grad_x': gradient(True),
            'grad_w': gradient(False)}


def disagreement(run: Run, reference: Tuple[Tensor, ...], x: Tensor, w: Tensor, grad: Tensor,
                 shape: Shape) -> float:
    """Largest error of output and gradients, over the largest value."""
    steps = directions(run, x, w, grad, shape)
    results = [steps['forward'](), steps['grad_x']()[0], steps['grad_w']()[0]]
    return max(((a - b).abs().max() / b.abs().max()).item()
               for a, b in zip(results, reference))


def reference_of(x: Tensor, w: Tensor, grad: Tensor, shape: Shape) -> Tuple[Tensor, ...]:
    """Output and gradients by the torch backend in float32."""
    steps = directions(ours('torch'), x.float(), w.float(), grad.float(), shape)
    return steps['forward'](), steps['grad_x']()[0], steps['grad_w']()[0]


def time_one(record: Record, clocks: Device, name: str, run: Run, shape: Shape, dtype: str,
             layout: str, bandwidth: float) -> None:
    """GPU microseconds of the three directions; a wrong result is a failure instead of a row."""
    what = f'{name}, {shape.name}, {dtype} {layout}'
    with record.attempt(what):
        values = operands(shape, clocks.name, getattr(torch, dtype), layout)
        error = disagreement(run, reference_of(*values, shape), *values, shape)
        if not error <= TOLERANCE[dtype]:
            record.fail(what, f'no times, error {error:.1e}')
            return
        times = {direction: round(clocks.gpu_us(step), 2)
                 for direction, step in directions(run, *values, shape).items()}
        floor = 1e6 * shape.elements * values[0].element_size() / bandwidth
        record.row('operators', implementation=name, shape=shape.name, dtype=dtype,
                   layout=layout, floor_us=round(floor, 2), **times)


def main(record: Record, options: argparse.Namespace) -> None:
    """The CUDA kernels (on a CPU torch's), the one-thread scheme and the prototype."""
    clocks = Device(options.device)
    bandwidth = clocks.copy_bandwidth()
    record.note(copy_bandwidth=bandwidth)
    backend = 'torch' if options.dry_run else 'cuda'
    reason = refusals(options.device)[backend]
    if reason:
        record.fail(f'backend {backend}', reason)
    one_thread = one_thread_per_output(record)
    for dtype, layout in FORMS[:2 if options.dry_run else None]:
        for shape in shapes(options):
            if not reason:
                time_one(record, clocks, backend, ours(backend), shape, dtype, layout, bandwidth)
            if one_thread and (dtype, layout) == ('float32', 'nchw'):
                time_one(record, clocks, 'one thread per output', one_thread, shape, dtype,
                         layout, bandwidth)
    if options.prototype:
        time_prototype(record, clocks, options)


def one_thread_per_output(record: Record) -> Optional[Run]:
    """The scheme of the authors' kernels, if CuPy is installed."""
    try:
        module = importlib.import_module('one_thread_per_output')
    except ImportError as error:
        record.note(one_thread_left_out=str(error))
        return None

    def run(x: Tensor, w: Tensor, shape: Shape) -> Tensor:
        return module.local_aggregation(x, w, shape.kernel, shape.stride, shape.kernel // 2,
                                        share=shape.share)
    return run


def time_prototype(record: Record, clocks: Device, options: argparse.Namespace) -> None:
    """The compiled prototype, with the best of a few tiles."""
    from gpu.prototype import Prototype
    prototype = Prototype(options.prototype)
    for dtype, shape in ((dtype, shape) for dtype in ('float32', 'bfloat16')
                         for shape in shapes(options)):
        with record.attempt(f'prototype, {shape.name}, {dtype}'):
            values = operands(shape, clocks.name, getattr(torch, dtype), 'nchw')
            expected = dict(zip(('forward', 'grad_x', 'grad_w'), reference_of(*values, shape)))
            best = {}
            for name, tiles in prototype.directions(*values, shape).items():
                right = [step for step, result in tiles
                         if (result() - expected[name]).abs().max() <=
                         TOLERANCE[dtype] * expected[name].abs().max()]
                if right:
                    best[name] = round(min(clocks.gpu_us(step, 10) for step in right), 2)
            record.row('operators', implementation='prototype', shape=shape.name, dtype=dtype,
                       layout='nchw', **best)


def triton(record: Record, options: argparse.Namespace) -> None:
    """The Triton kernels, which are compiled for every shape."""
    clocks = Device(options.device)
    backend = 'torch' if options.dry_run else 'triton'
    if backend not in available(options.device):
        record.note(left_out=refusals(options.device)[backend])
        return
    bandwidth = clocks.copy_bandwidth()
    for dtype in ('float32', 'bfloat16'):
        for shape in shapes(options):
            time_one(record, clocks, 'triton', ours(backend), shape, dtype, 'nchw', bandwidth)


def compiled(record: Record, options: argparse.Namespace) -> None:
    """Shift-and-add under torch.compile."""
    clocks = Device(options.device)
    bandwidth = clocks.copy_bandwidth()
    run = torch.compile(shift_and_add, dynamic=False, disable=options.dry_run)
    for shape in shapes(options)[:4]:
        time_one(record, clocks, 'shift-and-add, compiled', run, shape, 'float32', 'nchw',
                 bandwidth)
