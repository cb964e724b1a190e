"""Time and memory of convolution by FFT and directly, over kernel sizes, and the automatic choice.

    python tools/benchmarks/bench_fft_conv.py --out work_dirs/bench_fft_conv

Forward and backward of a depth-wise convolution: 1-D with kernels of 3 to 1023 taps, 2-D with
3x3 to 65x65. Writes a table (.md), the figures (.json) and, if matplotlib is installed, a plot
(.svg). Both ways must agree before anything is timed. ``--choices`` times other geometries, in
inference and training, and prints those for which the cost model chooses the slower way.
"""
import argparse
import json
import platform
import time
from itertools import product
from pathlib import Path
from typing import Dict, List

import torch
from torch import Tensor

from mmcontext.ops.fft_conv import direct_conv, explain_method, fft_conv

METHODS = {'fft': fft_conv, 'direct': direct_conv}
# How a way is chosen: by the cost model (the default), or by timing both.
POLICIES = ('auto', 'measure')
KERNELS = {1: (3, 7, 15, 31, 63, 127, 255, 511, 1023), 2: (3, 5, 9, 17, 33, 49, 65)}
# Batch, channels, side.
SHAPES = {1: (4, 32, 1024), 2: (2, 16, 64)}
# Axes, batch, channels, groups, side, kernels.
GEOMETRIES = (
    (1, 4, 64, 64, 784, (5, 9, 15, 31, 63, 127, 255, 511, 783)),
    (1, 4, 32, 32, 196, (9, 31, 91, 195)), (1, 4, 140, 140, 1024, (15, 63, 255, 1023)),
    (1, 4, 64, 64, 161, (31, 161)),
    (1, 4, 16, 16, 3000, (63, 511)), (1, 4, 32, 1, 784, (9, 31, 127, 511)),
    (1, 4, 64, 1, 161, (5, 31, 161)), (2, 2, 32, 32, 32, (5, 7, 9, 13, 15, 17, 25, 31)),
    (2, 2, 64, 64, 56, (5, 9, 13, 17, 33)), (2, 2, 16, 16, 64, (7, 15, 33, 63)),
    (2, 2, 128, 128, 14, (5, 9, 13)), (2, 2, 140, 140, 32, (9, 33)),
    (2, 2, 16, 1, 32, (5, 9, 13, 17, 31)), (2, 2, 32, 1, 28, (7, 13, 27)),
    (3, 1, 8, 8, 16, (3, 5, 7, 11)))


def run(method: str, x: Tensor, weight: Tensor) -> None:
    """One training step of the convolution, or one forward pass if no gradients are needed."""
    y = METHODS[method](x, weight, padding='same', groups=x.shape[1] // weight.shape[1])
    if y.requires_grad:
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))


def seconds(x: Tensor, weight: Tensor, budget: float) -> Dict[str, float]:
    """Shortest run of each way; they alternate, in case of noise on the machine."""
    best = dict.fromkeys(METHODS, float('inf'))
    turn, spent = 0, 0.
    while turn < 2 or (spent < budget and turn < 50):
        for method in METHODS:
            if x.is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(method, x, weight)
            if x.is_cuda:
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
            spent += taken
            if turn:  # the first one warms up
                best[method] = min(best[method], taken)
        turn += 1
    return best


def saved_mebibytes(method: str, x: Tensor, weight: Tensor) -> float:
    """What autograd saves for the backward pass, counting every storage once."""
    storages: Dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = METHODS[method](x, weight, padding='same', groups=x.shape[1])
    size = sum(storages.values()) / 2**20
    del y
    return size


def measure(dim: int, kernel: int, device: str, budget: float) -> dict:
    """Both ways for one kernel size."""
    batch, channels, side = SHAPES[dim]
    x = torch.randn(batch, channels, *(side, ) * dim, device=device, requires_grad=True)
    weight = torch.randn(channels, 1, *(kernel, ) * dim, device=device, requires_grad=True)
    row = dict(dim=dim, kernel=kernel)
    outputs = [METHODS[m](x, weight, padding='same', groups=channels) for m in METHODS]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3 * kernel**(dim / 2))
    del outputs
    times = seconds(x, weight, budget)
    for method in METHODS:
        row[f'{method}_ms'] = 1e3 * times[method]
        row[f'{method}_mib'] = saved_mebibytes(method, x, weight)
    best = min(row[f'{m}_ms'] for m in METHODS)
    for policy in POLICIES:
        row[policy] = explain_method(
            x, weight, padding='same', groups=channels, method=policy)['chosen']
        row[f'{policy}_over_best'] = row[f'{row[policy]}_ms'] / best
    return row


def table(rows: List[dict], title: str) -> str:
    """Markdown table of the results."""
    lines = [f'{title}\n', '| kernel | FFT ms | direct ms | FFT MiB | direct MiB | '
             'auto, over best | measure, over best |', '|---|---|---|---|---|---|---|']
    for r in rows:
        name = 'x'.join([str(r['kernel'])] * r['dim'])
        chosen = ' | '.join(f'{r[policy]}, {r[f"{policy}_over_best"]:.2f}' for policy in POLICIES)
        lines.append(f'| {name} | {r["fft_ms"]:.2f} | {r["direct_ms"]:.2f} | {r["fft_mib"]:.1f} | '
                     f'{r["direct_mib"]:.1f} | {chosen} |')
    return '\n'.join(lines) + '\n'


def plot(rows: List[dict], path: Path) -> bool:
    """Plot time and memory over kernel size; False if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 6), layout='constrained')
    axes = figure.subplots(2, 2)
    for column, dim in enumerate(KERNELS):
        mine = [r for r in rows if r['dim'] == dim]
        for line, (unit, label) in enumerate((('ms', 'ms, forward and backward'),
                                              ('mib', 'MiB kept for backward'))):
            ax = axes[line][column]
            for method in METHODS:
                ax.plot([r['kernel'] for r in mine], [r[f'{method}_{unit}'] for r in mine],
                        marker='o', label=method)
            ax.set(xscale='log', yscale='log', xlabel=f'kernel side, {dim}-D', ylabel=label)
            ax.legend()
    figure.savefig(path)
    return True


def choices(device: str, budget: float) -> None:
    """Print the cases of ``GEOMETRIES`` in which the cost model chooses the slower way."""
    wrong = cases = 0
    for dim, batch, channels, groups, side, kernels in GEOMETRIES:
        for kernel, grad in product(kernels, (False, True)):
            x = torch.randn(batch, channels, *(side, ) * dim, device=device, requires_grad=grad)
            weight = torch.randn(channels, channels // groups, *(kernel, ) * dim, device=device,
                                 requires_grad=grad)
            chosen = explain_method(x, weight, padding='same', groups=groups)['chosen']
            times = seconds(x, weight, budget)
            ratio = times[chosen] / min(times.values())
            cases += 1
            if ratio > 1.05:
                wrong += 1
                print(f'{dim}-D, {channels} channels, {groups} groups, side {side}, kernel '
                      f'{kernel}, {"training" if grad else "inference"}: {chosen}, {ratio:.2f}')
    print(f'more than 5 % over the best in {wrong} of {cases} cases')


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='work_dirs/bench_fft_conv', help='folder to write')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--budget', type=float, default=1., help='seconds for each kernel size')
    parser.add_argument('--choices', action='store_true',
                        help="check the cost model's choices over many geometries instead")
    args = parser.parse_args()
    if args.choices:
        choices(args.device, args.budget)
        return
    rows = []
    for dim, kernels in KERNELS.items():
        for kernel in kernels:
            rows.append(measure(dim, kernel, args.device, args.budget))
            print(rows[-1], flush=True)
    name = torch.cuda.get_device_name() if args.device == 'cuda' else (
        f'{platform.machine()}, {torch.get_num_threads()} threads')
    text = f'{args.device} ({name}), torch {torch.__version__}\n'
    for dim in KERNELS:
        batch, channels, side = SHAPES[dim]
        size = 'x'.join([str(side)] * dim)
        title = f'\n{dim}-D, depth-wise, batch {batch}, {channels} channels, {size}, float32'
        text += table([r for r in rows if r['dim'] == dim], title)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'fft_conv.md').write_text(text)
    (out / 'fft_conv.json').write_text(json.dumps(rows, indent=1))
    print(text)
    for policy in POLICIES:
        worst = max(r[f'{policy}_over_best'] for r in rows)
        print(f"worst choice of '{policy}': {100 * (worst - 1):.0f}% over the best")
    if not plot(rows, out / 'fft_conv.svg'):
        print('no plot: matplotlib is not installed')


if __name__ == '__main__':
    main()
