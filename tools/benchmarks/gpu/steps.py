"""(b) Host time of the public functions, first steps, and new image sizes."""
import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import bench_host
import torch

from gpu.backends import chosen, compilations
from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops import local_aggregation

_SIZES = [(224 + 16 * index, 160 + 24 * index) for index in range(20)]


def host(record: Record, options: argparse.Namespace) -> None:
    """Microseconds per call; with the mm packages also layers and narrow training steps."""
    rounds = 1 if options.dry_run else 100
    clock = bench_host.Clock(options.device)
    table = bench_host.entries(options.device, None)
    if importlib.util.find_spec('mmcv'):
        names = list(bench_host.LAYERS)[:3 if options.dry_run else None]
        table.update(bench_host.layer_steps(options.device, names))
    for name, row in bench_host.microseconds(table, rounds, clock).items():
        record.row('host', entry=name, **row)
    if not importlib.util.find_spec('mmpretrain'):
        record.note(networks_left_out='mmpretrain is not there')
        return
    from mmengine.registry import init_default_scope
    init_default_scope('mmpretrain')
    names = [bench_host.BASELINE] if options.dry_run else list(bench_host.WIDTHS)
    steps = bench_host.network_steps(names, options.device, 32 if options.dry_run else 64)
    rows = bench_host.network_rows(steps, 1 if options.dry_run else 5, clock)
    for name, row in rows.items():
        record.row('host_steps', network=name, **row)


def first_step(record: Record, options: argparse.Namespace) -> None:
    """The first training step of CedNet-50 in a new process, kernel cache cold and then warm."""
    cache = Path(options.work, 'cold_kernels')
    shutil.rmtree(cache, ignore_errors=True)
    environment = dict(os.environ, MMCONTEXT_KERNEL_CACHE=str(cache),
                       TRITON_CACHE_DIR=str(cache / 'triton'))
    for state in ('cold', 'warm'):
        if options.dry_run:
            figures = _first_steps('cpu', 2, 32, bench_host.narrow)
        else:
            done = subprocess.run([sys.executable, '-m', 'gpu.steps'], env=environment,
                                  capture_output=True, text=True)
            if done.returncode:
                print(done.stdout, done.stderr)
                record.fail(f'first step, {state}', (done.stderr.splitlines() or ['?'])[-1])
                continue
            figures = json.loads(done.stdout.splitlines()[-1])
        record.row('first_step', cache=state, **figures)


def _first_steps(device: str, batch: int, size: int,
                 build: Callable[[str], torch.nn.Module]) -> dict:
    """Seconds of the first and of the second step, after those of ResNet-50.

    The time to load cuDNN and cuBLAS is thus charged to ResNet-50.
    """
    from mmengine.registry import init_default_scope

    from gpu.networks import training_step
    init_default_scope('mmpretrain')
    figures = dict(backend=chosen(device))
    for name in ('ResNet-50', 'CedNet-50'):
        step = training_step(build(name), device, batch, size, 'bfloat16', 'nhwc')
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            step().item()
            seconds.append(round(time.perf_counter() - start, 3))
        figures[name] = seconds
    figures['compilations'] = compilations()
    return figures


def sizes(record: Record, options: argparse.Namespace) -> None:
    """Forward and backward at 20 image sizes, one after another: seconds of each first call."""
    clocks = Device(options.device)
    for name, groups, kernel, share in (('involution', 4, 7, 'block'),
                                        ('CoT', 8, 3, 'interleaved')):
        before, seconds, repeated = None, [], []
        for height, width in _SIZES[:3] if options.dry_run else _SIZES:
            size = (height // 16, width // 16) if options.dry_run else (height // 4, width // 4)
            x = torch.randn(2, 64, *size, device=options.device, requires_grad=True)
            w = torch.randn(2, groups, kernel ** 2, *size, device=options.device,
                            requires_grad=True)
            for times in (seconds, repeated):
                clocks.synchronize()
                start = time.perf_counter()
                local_aggregation(x, w, kernel, padding=kernel // 2, share=share).sum().backward()
                clocks.synchronize()
                times.append(time.perf_counter() - start)
            if before is None:
                before = compilations()
        after = compilations()
        record.row('sizes', aggregation=name, sizes=len(seconds), first_size_s=seconds[0],
                   slowest_new_size_s=max(seconds[1:]), slowest_repeat_s=max(repeated[1:]),
                   compiled_at_first=before,
                   compiled_later=None if after is None else after - before)


if __name__ == '__main__':
    from gpu.networks import build
    print(json.dumps(_first_steps('cuda', 64, 224, build)))
