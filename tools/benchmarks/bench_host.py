"""Host overhead of the public functions: the time in Python and torch's dispatcher.

    python tools/benchmarks/bench_host.py [--networks CedNet-50 ...] [--out host.json]

Microseconds per call, forward and forward + backward, of ``local_aggregation``,
``fused_involution`` and every layer, compared with torch's own convolution; and milliseconds per
training step (batch 8) of narrow networks, compared with mmpretrain's ResNet-50, with two counts
that no other process affects: calls of Python functions, and operators that reach a kernel (not
counting views).

The operands are so small that the kernels take next to no time (except in PyConv's networks,
whose groups need the full width). If the library has the backend 'null', which launches nothing,
the aggregations use it. On a CPU, processor time is measured, in one thread, so that other
processes matter little; on a GPU (``--device cuda``) the time until a call returns, starting with
an idle GPU.
"""
import argparse
import json
import statistics
import sys
import time
from typing import Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmcontext.ops import explain, fused_involution, local_aggregation

BATCH, CHANNELS, SIZE = 2, 32, 7
BASELINE = 'ResNet-50'
# The smallest width each family allows: PyConv's first stage has 16 groups in a quarter of it.
WIDTHS = {'ResNet-50': 8, 'CoResNet-50': 8, 'CoTNet-50': 8, 'SE-CoTNetD-50': 8, 'CoTNeXt-50': 32,
          'RedNet-50': 32, 'CedNet-50': 32, 'PyConvResNet-50': 64, 'PyConvHGResNet-50': 64,
          'CKResNet-50': 8}
LAYERS = {
    'Conv2d 3x3': lambda c: nn.Conv2d(c, c, 3, padding=1, bias=False),
    'Involution2d': lambda c: _layer('Involution2d', c),
    'CVolution2d': lambda c: _layer('CVolution2d', c),
    'CoT2d': lambda c: _layer('CoT2d', c),
    'CoConv2d': lambda c: _layer('CoConv2d', c),
    'PyConv2d': lambda c: _layer('PyConv2d', c, levels=2),
    'SplitAttention2d': lambda c: _layer('SplitAttention2d', c),
    'SeparableFlexConv2d': lambda c: _layer('SeparableFlexConv2d', c, kernel_size=9),
}

Step = Callable[[], object]


def _layer(name: str, channels: int, **options) -> nn.Module:
    from mmcontext import layers
    return getattr(layers, name)(channels, channels, **options)


def stub_backend(device: str) -> Optional[str]:
    """'null' if the library has that backend, which launches nothing, else None."""
    x = torch.zeros(1, 1, 3, 3, device=device)
    try:
        explain(x, torch.zeros(1, 1, 9, 3, 3, device=device), 3, padding=1, backend='null')
    except (ValueError, RuntimeError):
        return None
    return 'null'


def forward_and_both(function: Callable[..., Tensor], *operands: Tensor,
                     leaves: Tuple[Tensor, ...] = ()) -> Dict[str, Step]:
    """A forward call as in training, and one with backward to operands and leaves."""
    inputs = [t.detach().requires_grad_() for t in operands]
    grad = torch.randn_like(function(*inputs))
    return {'forward': lambda: function(*inputs),
            'both': lambda: torch.autograd.grad(function(*inputs), [*inputs, *leaves], grad)}


def entries(device: str, backend: Optional[str]) -> Dict[str, Dict[str, Step]]:
    """Steps of the functions."""
    groups, reduced = CHANNELS // 16, 8
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, device=device)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device)
    w = torch.randn(BATCH, groups, 49, SIZE, SIZE, device=device)
    r = torch.randn(BATCH, reduced, SIZE, SIZE, device=device)
    make = torch.randn(groups * 49, reduced, device=device)
    bias = torch.randn(groups * 49, device=device)
    scale = torch.randn(BATCH, CHANNELS, device=device)
    return {
        'torch conv2d': forward_and_both(lambda x, w: F.conv2d(x, w, None, 1, 1), x, weight),
        'local_aggregation': forward_and_both(
            lambda x, w: local_aggregation(x, w, 7, 1, 3, backend=backend), x, w),
        'fused_involution': forward_and_both(
            lambda x, r, make, bias, scale: fused_involution(
                x, r, make, bias, 7, 1, 3, scale=scale, backend=backend),
            x, r, make, bias, scale),
    }


def layer_steps(device: str, names: List[str]) -> Dict[str, Dict[str, Step]]:
    """Steps of the layers."""
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, device=device)
    steps = {}
    for name in names:
        layer = LAYERS[name](CHANNELS).to(device)
        steps[name] = forward_and_both(layer, x, leaves=tuple(layer.parameters()))
    return steps


class Clock:
    """Measures the seconds that a call takes on the host."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == 'cuda'
        self._now = time.perf_counter if self._on_gpu else time.process_time

    def __call__(self, step: Step) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
        start = self._now()
        step()
        return self._now() - start


def microseconds(table: Dict[str, Dict[str, Step]], rounds: int,
                 clock: Clock) -> Dict[str, Dict[str, float]]:
    """Medians of all steps, run interleaved."""
    steps = {(name, mode): step for name, modes in table.items() for mode, step in modes.items()}
    times = {key: [] for key in steps}
    for index in range(rounds + 3):
        for key, step in steps.items():
            seconds = clock(step)
            if index >= 3:
                times[key].append(seconds)
    rows = {}
    for (name, mode), values in times.items():
        rows.setdefault(name, {})[f'{mode}_us'] = round(1e6 * statistics.median(values), 1)
    return rows


class _OperatorCount(TorchDispatchMode):
    """Counts the operators that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # A result that aliases an operand without being written to is a view.
        self.count += not any(returned.alias_info and not returned.alias_info.is_write
                              for returned in function._schema.returns)
        return function(*args, **(kwargs or {}))


def counts(step: Step) -> Dict[str, int]:
    """Number of operators and of Python function calls in one step."""
    with _OperatorCount() as operators:
        step()
    calls = 0

    def profile(frame, event, argument) -> None:
        nonlocal calls
        calls += event == 'call'

    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return dict(operators=operators.count, python_calls=calls)


def narrow(name: str) -> nn.Module:
    """A 50-layer network of the smallest possible width, with a classifier."""
    from bench_models import NETWORKS, Classifier
    cfg = dict(NETWORKS[name], base_channels=WIDTHS[name])
    if name == BASELINE:
        cfg['stem_channels'] = WIDTHS[name]
    return Classifier(cfg, 32 * WIDTHS[name])


def network_steps(names: List[str], device: str, size: int) -> Dict[str, Step]:
    """A training step of each narrow network, batch 8."""
    from bench_models import training
    images = torch.randn(8, 3, size, size, device=device)
    labels = torch.randint(0, 1000, (8, ), device=device)
    return {name: training(narrow(name).to(device), images, labels) for name in names}


def network_rows(steps: Dict[str, Step], rounds: int, clock: Clock) -> Dict[str, dict]:
    """Milliseconds, ratio to the baseline within a round, and counts."""
    times = {name: [] for name in steps}
    for index in range(rounds + 2):
        for name, step in steps.items():
            seconds = clock(step)
            if index >= 2:
                times[name].append(1e3 * seconds)
    base = times[BASELINE]
    return {name: dict(ms=round(statistics.median(values), 2),
                       ratio=round(statistics.median(v / b for v, b in zip(values, base)), 3),
                       **counts(steps[name]))
            for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--layers', nargs='*', choices=sorted(LAYERS), default=list(LAYERS),
                        metavar='NAME')
    parser.add_argument('--networks', nargs='*', choices=sorted(WIDTHS), default=list(WIDTHS),
                        metavar='NAME', help='without names: none')
    parser.add_argument('--size', type=int, default=16, help='of the images')
    parser.add_argument('--rounds', type=int, default=200)
    parser.add_argument('--train-rounds', type=int, default=10)
    parser.add_argument('--out', help='JSON file')
    args = parser.parse_args()
    clock = Clock(args.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backend = stub_backend(args.device)
    table = entries(args.device, backend)
    table.update(layer_steps(args.device, args.layers))
    rows = microseconds(table, args.rounds, clock)
    result = dict(device=args.device, torch=torch.__version__, backend=backend or 'chosen',
                  threads=torch.get_num_threads(), entries=rows)
    base = rows['torch conv2d']
    print(f'microseconds of a call on {args.device} (over conv2d); aggregations: '
          f'{"launching nothing" if backend else "backend as chosen"}')
    for name, row in rows.items():
        print(f'  {name:24}' + ''.join(f'{mode:>10}{row[mode]:9.1f} ({row[mode] / base[mode]:.2f})'
                                       for mode in row))
    if args.networks:
        from mmengine.registry import init_default_scope
        init_default_scope('mmpretrain')
        names = [BASELINE, *(name for name in args.networks if name != BASELINE)]
        result['networks'] = network_rows(network_steps(names, args.device, args.size),
                                          args.train_rounds, clock)
        print(f'training step, batch 8, {args.size}x{args.size}, narrow: ms, over {BASELINE}, '
              'operators, calls of Python functions')
        for name, row in result['networks'].items():
            print(f'  {name:24}{row["ms"]:9.2f}{row["ratio"]:8.3f}{row["operators"]:8d}'
                  f'{row["python_calls"]:9d}')
    if args.out:
        with open(args.out, 'w') as file:
            json.dump(result, file, indent=1)


if __name__ == '__main__':
    main()
