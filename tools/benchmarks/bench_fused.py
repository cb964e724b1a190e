"""Memory and time of a training step with and without ``fused=True``.

    python tools/benchmarks/bench_fused.py [--network CedNet] [--depth 50] [--batch 8]

Each form runs in a separate process, so that the peaks do not mix. ``saved`` is what autograd
saves for the backward pass, without the parameters and counting every storage once; ``peak`` is
the largest resident set (CPU) or allocation (GPU) during the steps, minus what was in use before
the first of them.
"""
import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from mmcontext.registry import MODELS

_MIB = 1 << 20


def saved_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(images)
    total = sum(storages.values())
    del outputs
    return total


def _peak(device: str) -> int:
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


def measure(network: str, depth: int, batch: int, size: int, steps: int, device: str,
            channels_last: bool, fused: bool) -> dict:
    """Figures of one form; every step is a forward and a backward pass in float32."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = MODELS.build(dict(type=f'mmcontext.{network}', depth=depth,
                              layer_cfg=dict(fused=fused))).to(device, memory_format=layout)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    before, seconds, losses = _peak(device), [], []
    for _ in range(steps):
        start = time.perf_counter()
        loss = model(images)[0].square().mean()
        loss.backward()
        losses.append(loss.item())  # synchronises with the GPU
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    peak = _peak(device) - before
    return {'saved_mib': saved_bytes(model, images) / _MIB, 'peak_mib': peak / _MIB,
            'seconds': min(seconds), 'median_seconds': statistics.median(seconds),
            'loss': losses[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--network', choices=['RedNet', 'CedNet'], default='CedNet')
    parser.add_argument('--depth', type=int, default=50)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--steps', type=int, default=4)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--form', choices=['plain', 'fused'], help='measure this one, here')
    args = parser.parse_args()
    options = {key: value for key, value in vars(args).items() if key != 'form'}
    if args.form:
        print(json.dumps(measure(**options, fused=args.form == 'fused')))
        return
    results = {}
    for form in ('plain', 'fused'):
        child = subprocess.run([sys.executable, *sys.argv, '--form', form], check=True,
                               stdout=subprocess.PIPE, text=True)
        results[form] = json.loads(child.stdout.splitlines()[-1])
    plain, fused = results['plain'], results['fused']
    if abs(plain['loss'] - fused['loss']) > 1e-3 * abs(plain['loss']):
        sys.exit(f'the losses differ: {plain["loss"]} and {fused["loss"]} (fused)')
    print(f'{args.network}-{args.depth}, batch {args.batch}, {args.size}x{args.size}, fp32, '
          f'{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, '
          f'{platform.processor() or platform.machine()}')
    for key in ('saved_mib', 'peak_mib', 'seconds'):
        print(f'{key:>10}: {plain[key]:8.2f} plain, {fused[key]:8.2f} fused '
              f'({fused[key] / plain[key] - 1:+.0%})')
    print(json.dumps({'options': options, **results}))


if __name__ == '__main__':
    main()
