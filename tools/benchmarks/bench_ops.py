"""Time local aggregation against unfold and shift-and-add, forward and forward + backward.

For every shape all implementations alternate, round after round in one process, so that noise on
the machine affects all of them. A time is printed only after output and gradients agree with the
float64 reference. Two floors are measured on the same machine: the rate of fused multiply-adds
(large float32 matrix product) and the rate of a memory copy; the time of an operator cannot be
less than the larger of its arithmetic and its traffic at those rates.

Much of unfold's time goes to page faults of its K*K copies, which the C library requests from and
returns to the system in every call; ``--retain-heap`` runs the whole benchmark in a process whose
C library keeps freed memory.

    python tools/benchmarks/bench_ops.py --out ops.json --plot ops.png
    python tools/benchmarks/bench_ops.py --retain-heap --shapes quick
    python tools/benchmarks/bench_ops.py --memory

With ``--device cuda`` the same table is made on a GPU; if CuPy can be imported,
``one_thread_per_output.py`` next to this file adds the scheme of the authors' kernels.
"""
import argparse
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops import explain, local_aggregation
from mmcontext.ops.native_library import instruction_sets

RETAIN = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(1 << 40),
          'MALLOC_TOP_PAD_': str(1 << 26)}


class Shape(NamedTuple):
    """An aggregation with padding that keeps the size at stride 1."""
    name: str
    batch: int
    channels: int
    groups: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    share: str = 'block'

    @property
    def output(self) -> Tuple[int, int]:
        return tuple((size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1
                     for size in (self.height, self.width))

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass; each gradient has as many."""
        rows, cols = self.output
        return 2 * self.batch * self.channels * rows * cols * self.kernel ** 2

    @property
    def elements(self) -> int:
        """Elements read and written by the forward pass."""
        rows, cols = self.output
        return self.batch * (self.channels * (self.height * self.width + rows * cols) +
                             self.groups * self.kernel ** 2 * rows * cols)


def _cednet(batch: int) -> List[Shape]:
    shapes = [Shape('CedNet-50 stem', batch, 32, 2, 112, 112, 7)]
    for stage, (channels, size) in enumerate(((64, 56), (128, 28), (256, 14), (512, 7)), 1):
        groups = channels // 16
        if stage > 1:
            shapes.append(Shape(f'CedNet-50 stage {stage} first', batch, channels, groups,
                                2 * size, 2 * size, 7, 2))
        shapes.append(Shape(f'CedNet-50 stage {stage}', batch, channels, groups, size, size, 7))
    return shapes


def _cotnet(batch: int) -> List[Shape]:
    return [Shape(f'CoTNet-50 stage {stage}', batch, channels, channels // 8, size, size, 3, 1,
                  'interleaved')
            for stage, (channels, size) in enumerate(
                ((64, 56), (128, 28), (256, 14), (512, 7)), 1)]


def _fpn() -> List[Shape]:
    return [Shape(f'FPN level {level} at 1280x800', 1, 256, 16, 800 >> level, 1280 >> level, 7)
            for level in (2, 3, 4, 5)]


SHAPES = {
    'cednet': lambda: _cednet(1) + _cednet(8),
    'cotnet': lambda: _cotnet(1) + _cotnet(8),
    'fpn': _fpn,
    'quick': lambda: [_cednet(1)[1], _cednet(1)[5], _cednet(8)[1], _cednet(8)[5], _cotnet(8)[0]],
}
SHAPES['all'] = lambda: SHAPES['cednet']() + SHAPES['cotnet']() + _fpn()


def unfold(x: Tensor, w: Tensor, shape: Shape) -> Tensor:
    """The formulation with K*K copies of x."""
    rows, cols = shape.output
    patches = F.unfold(x, shape.kernel, padding=shape.kernel // 2, stride=shape.stride)
    shared = shape.channels // shape.groups
    if shape.share == 'block':
        patches = patches.view(shape.batch, shape.groups, shared, -1, rows, cols)
        return (patches * w.unsqueeze(2)).sum(3).view(shape.batch, -1, rows, cols)
    patches = patches.view(shape.batch, shared, shape.groups, -1, rows, cols)
    return (patches * w.unsqueeze(1)).sum(3).view(shape.batch, -1, rows, cols)


def shift_and_add(x: Tensor, w: Tensor, shape: Shape) -> Tensor:
    """One pass over x per tap, the obvious few lines of torch."""
    rows, cols = shape.output
    padded = F.pad(x, (shape.kernel // 2, ) * 4)
    shared = shape.channels // shape.groups
    by_group = (shared, shape.groups) if shape.share == 'interleaved' else (shape.groups, shared)
    padded = padded.unflatten(1, by_group)
    weights = w.unsqueeze(1 if shape.share == 'interleaved' else 2)
    total = None
    for tap in range(shape.kernel ** 2):
        top, left = divmod(tap, shape.kernel)
        part = padded[..., top:top + (rows - 1) * shape.stride + 1:shape.stride,
                      left:left + (cols - 1) * shape.stride + 1:shape.stride]
        product = part * weights[:, :, :, tap]
        total = product if total is None else total.add_(product)
    return total.flatten(1, 2)


def ours(backend: Optional[str]) -> Callable[[Tensor, Tensor, Shape], Tensor]:
    def run(x: Tensor, w: Tensor, shape: Shape) -> Tensor:
        return local_aggregation(x, w, shape.kernel, shape.stride, shape.kernel // 2,
                                 share=shape.share, backend=backend)
    return run


def implementations(device: str, compiled: bool) -> Dict[str, Callable]:
    table = {'mmcontext': ours(None), 'torch backend': ours('torch'), 'unfold': unfold,
             'shift-and-add': shift_and_add}
    if compiled:
        table['unfold compiled'] = torch.compile(unfold, dynamic=False)
        table['shift-and-add compiled'] = torch.compile(shift_and_add, dynamic=False)
    if device == 'cuda' and importlib.util.find_spec('cupy') is not None:
        baseline = importlib.import_module('one_thread_per_output')
        table['one thread per output'] = lambda x, w, shape: baseline.local_aggregation(
            x, w, shape.kernel, shape.stride, shape.kernel // 2, share=shape.share)
    return table


def synchronize(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def floors(device: str) -> Tuple[float, float]:
    """Multiply-add rate [flop/s] and copy bandwidth [byte/s] of this machine, best of several."""
    a = torch.randn(2048, 2048, device=device)
    buffer = torch.empty(1 << 26, device=device)
    target = torch.empty_like(buffer)
    best = [float('inf')] * 2
    for _ in range(8):
        for index, work in enumerate((lambda: a @ a, lambda: target.copy_(buffer))):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            best[index] = min(best[index], time.perf_counter() - start)
    return 2 * 2048 ** 3 / best[0], 2 * buffer.numel() * 4 / best[1]


def operands(shape: Shape, device: str, dtype: torch.dtype, layout: str) -> Tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    rows, cols = shape.output
    taps = shape.kernel ** 2
    memory = torch.channels_last if layout == 'nhwc' else torch.contiguous_format

    def tensor(channels: int, height: int, width: int) -> Tensor:
        value = torch.randn(shape.batch, channels, height, width, generator=generator)
        return value.to(device, dtype).contiguous(memory_format=memory)

    x = tensor(shape.channels, shape.height, shape.width)
    w = tensor(shape.groups * taps, rows, cols).unflatten(1, (shape.groups, taps))
    return x, w, tensor(shape.channels, rows, cols)


def gradients(run: Callable, x: Tensor, w: Tensor, grad: Tensor, shape: Shape) -> Tuple:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = run(x, w, shape)
    return (y, *torch.autograd.grad(y, (x, w), grad))


def disagreement(table: Dict[str, Callable], shape: Shape, device: str, dtype: torch.dtype,
                 layout: str) -> Dict[str, float]:
    """Largest error of output and gradients against float64, relative to the largest value.

    For one image and a part of it, since the reference holds K*K float64 copies.
    """
    small = shape._replace(batch=1, height=min(shape.height, 40), width=min(shape.width, 40))
    x, w, grad = operands(small, device, dtype, layout)
    exact = gradients(ours('reference'), x.double(), w.double(), grad.double(), small)
    errors = {}
    for name, run in table.items():
        results = gradients(run, x, w, grad, small)
        errors[name] = max(((a.double() - b).abs().max() / b.abs().max()).item()
                           for a, b in zip(results, exact))
    return errors


def measure(steps: Dict[str, Callable[[], None]], seconds: float, device: str
            ) -> Dict[str, List[float]]:
    """Times of the steps, interleaved until ``seconds`` have passed (at least 5 rounds).

    Each is run once right before, without being timed, so that its time does not depend on what
    the previous one left in the caches.
    """
    times = {name: [] for name in steps}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 5:
        for name, step in steps.items():
            step()
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
    return times


def bench(shape: Shape, args: argparse.Namespace, rates: Tuple[float, float]) -> dict:
    dtype = getattr(torch, args.dtype)
    table = implementations(args.device, args.compile)
    tolerance = {'float32': 2e-5, 'float16': 2e-2, 'bfloat16': 1e-1}[args.dtype]
    errors = disagreement(table, shape, args.device, dtype, args.layout)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        raise SystemExit(f'{shape.name}: no times, the results differ from the reference: {wrong}')
    x, w, grad = operands(shape, args.device, dtype, args.layout)
    chosen = explain(x, w, shape.kernel, shape.stride, shape.kernel // 2, share=shape.share)
    row = dict(shape=shape._asdict(), backend=chosen['chosen'], errors=errors)
    size = x.element_size()
    kernels = w.numel()
    traffic = dict(forward=shape.elements, both=2 * shape.elements + kernels + grad.numel())
    for mode, factor in (('forward', 1), ('both', 3)):
        if mode == 'forward':
            steps = {name: (lambda run=run: run(x, w, shape)) for name, run in table.items()}
        else:
            steps = {name: (lambda run=run: gradients(run, x, w, grad, shape))
                     for name, run in table.items()}
        times = measure(steps, args.seconds, args.device)
        arithmetic = factor * shape.flops / rates[0]
        memory = traffic[mode] * size / rates[1]
        quantiles = {name: [1e3 * q for q in np.quantile(t, (0.2, 0.5, 0.8))]
                     for name, t in times.items()}
        ratio = {name: float(np.median(np.divide(t, times['mmcontext'])))
                 for name, t in times.items()}
        row[mode] = dict(ms=quantiles, times_ours=ratio, rounds=len(times['mmcontext']),
                         arithmetic_floor_ms=1e3 * arithmetic, memory_floor_ms=1e3 * memory)
    return row


def show(row: dict) -> None:
    shape = row['shape']
    print(f"\n{shape['name']}: B {shape['batch']}, C {shape['channels']}, "
          f"{shape['height']}x{shape['width']}, K {shape['kernel']}, stride {shape['stride']}, "
          f"{shape['share']} [{row['backend']}]")
    for mode, title in (('forward', 'forward'), ('both', 'forward + backward')):
        part = row[mode]
        floor = max(part['arithmetic_floor_ms'], part['memory_floor_ms'])
        own = part['ms']['mmcontext'][1]
        print(f"  {title}: floor {floor:.3f} ms (arithmetic {part['arithmetic_floor_ms']:.3f}, "
              f"memory {part['memory_floor_ms']:.3f}); reached {100 * floor / own:.0f} %")
        for name, (low, median, high) in part['ms'].items():
            print(f"    {name:24} {median:10.3f} ms  [{low:.3f}, {high:.3f}]  "
                  f"{part['times_ours'][name]:7.2f} x ours")


def machine(args: argparse.Namespace, rates: Tuple[float, float]) -> dict:
    return dict(processor=(torch.cuda.get_device_name() if args.device == 'cuda'
                           else cpu_name()), instruction_sets=instruction_sets(),
                threads=torch.get_num_threads(), torch=torch.__version__,
                gflops=rates[0] / 1e9, gbytes=rates[1] / 1e9, dtype=args.dtype,
                layout=args.layout, retained_heap='MALLOC_MMAP_MAX_' in os.environ)


def cpu_name() -> str:
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.split(':', 1)[1].strip()
    return platform.processor()


def plot(rows: List[dict], path: str) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    names = list(rows[0]['forward']['ms'])
    figure, axes = plt.subplots(2, 1, figsize=(10, 9), sharex=True)
    for axis, mode, title in zip(axes, ('forward', 'both'), ('forward', 'forward + backward')):
        for name in names:
            axis.plot([row[mode]['ms'][name][1] for row in rows], 'o-', label=name)
        axis.plot([max(row[mode]['arithmetic_floor_ms'], row[mode]['memory_floor_ms'])
                   for row in rows], 'k--', label='floor')
        axis.set(yscale='log', ylabel='ms', title=title)
    axes[0].legend()
    labels = [f"{row['shape']['name']}, batch {row['shape']['batch']}" for row in rows]
    axes[1].set_xticks(range(len(rows)), labels, rotation=90)
    figure.tight_layout()
    figure.savefig(path)


def peak_memory(name: str) -> int:
    """Bytes that one involution (C 64, 56x56, K 7, batch 8), forward and backward, adds to the
    peak of this process."""
    shape = _cednet(8)[1]
    x, w, grad = operands(shape, 'cpu', torch.float32, 'nchw')
    table = implementations('cpu', False)
    tiny = Shape('', 1, 16, 1, 8, 8, 7)
    gradients(table[name], *operands(tiny, 'cpu', torch.float32, 'nchw'), tiny)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradients(table[name], x, w, grad, shape)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def show_memory() -> None:
    """Run each formulation in a separate process, since a peak never goes down."""
    shape = _cednet(8)[1]
    x, w, grad = operands(shape, 'cpu', torch.float32, 'nchw')
    outputs = 4 * (grad.numel() + x.numel() + w.numel())
    print('peak memory added by one involution, C 64, 56x56, K 7, batch 8, forward + backward; '
          f'output and gradients are {outputs / 2 ** 20:.1f} MiB of it')
    peaks = {}
    for name in ('mmcontext', 'torch backend', 'shift-and-add', 'unfold'):
        command = [sys.executable, os.path.abspath(__file__), '--memory-of', name]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True,
                                         text=True).stdout.split()[-1])
        print(f'  {name:16} {peaks[name] / 2 ** 20:8.1f} MiB')
    print(f"  mmcontext needs {peaks['mmcontext'] / peaks['unfold']:.3f} of unfold's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shapes', choices=sorted(SHAPES), default='all')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
    parser.add_argument('--layout', choices=('nchw', 'nhwc'), default='nchw')
    parser.add_argument('--compile', action='store_true',
                        help='also torch.compile of unfold and of shift-and-add')
    parser.add_argument('--seconds', type=float, default=2.0, help='per shape and mode')
    parser.add_argument('--retain-heap', action='store_true')
    parser.add_argument('--memory', action='store_true', help='peak memory instead of time')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    parser.add_argument('--out', help='JSON file')
    parser.add_argument('--plot', help='image file')
    args = parser.parse_args()
    if args.memory_of:
        print(peak_memory(args.memory_of))
        return
    if args.memory:
        show_memory()
        return
    if args.retain_heap and 'MALLOC_MMAP_MAX_' not in os.environ:
        sys.exit(subprocess.call([sys.executable, *sys.argv], env={**os.environ, **RETAIN}))
    rates = floors(args.device)
    header = machine(args, rates)
    print(json.dumps(header))
    rows = []
    for shape in SHAPES[args.shapes]():
        rows.append(bench(shape, args, rates))
        show(rows[-1])
    if args.out:
        with open(args.out, 'w') as file:
            json.dump(dict(machine=header, rows=rows), file, indent=1)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
