"""(d) Where the GPU time of a training step goes: kernels by kind, and the longest by name."""
import argparse
import collections
from typing import Dict, Iterable, Tuple

import torch
from bench_host import narrow
from mmengine.registry import init_default_scope
from torch.profiler import ProfilerActivity, profile

from gpu.networks import NAMES, TINY_NETWORKS, build, training_step
from gpu.record import Record
from gpu.timing import Device

_STEPS = 2
_LONGEST = 12
# Kinds in the order in which they are tried, with substrings of their kernels' names.
_KINDS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ('aggregation', ('local_aggregation', 'mmcontext')),
    ('copies between layouts', ('nchwToNhwc', 'nhwcToNchw', 'transpose')),
    ('norms', ('batch_norm', 'bn_fw', 'bn_bw', 'BatchNorm', 'batchnorm', 'group_norm',
               'GroupNorm', 'RowwiseMoments')),
    ('convolutions and products',
     ('conv', 'gemm', 'cudnn', 'cutlass', 'xmma', 'wgrad', 'dgrad', 'nvjet', 'splitK', 'fprop',
      'gemv', 'cublas')),
    ('optimizer', ('multi_tensor', 'foreach')),
    ('reductions', ('reduce', 'softmax', 'SoftMax')),
    ('pooling', ('pool', )),
    ('casts and copies', ('copy', 'Memcpy', 'CatArray')),
    ('elementwise', ('elementwise', 'channel_gate', 'fill', 'Memset', 'where', 'Functor')),
)


def kind(name: str) -> str:
    """Kind of a kernel by its name."""
    return next((kind for kind, parts in _KINDS if any(part in name for part in parts)), 'other')


def summary(kernels: Iterable[Tuple[str, float]], steps: int) -> Dict[str, object]:
    """Milliseconds and launches of one step, by kind and of the longest kernels.

    Args:
        kernels: Name and microseconds of every kernel that ran.
        steps: Number of steps they belong to.
    """
    kinds, names = collections.defaultdict(lambda: [0., 0]), collections.defaultdict(
        lambda: [0., 0])
    for name, us in kernels:
        for line in (kinds[kind(name)], names[name]):
            line[0] += us
            line[1] += 1

    def lines(table: Dict[str, list]) -> Dict[str, list]:
        return {name: [round(1e-3 * us / steps, 3), round(count / steps, 1)]
                for name, (us, count) in sorted(table.items(), key=lambda item: -item[1][0])}

    everything = lines(kinds)
    return dict(
        gpu_ms=round(sum(ms for ms, _ in everything.values()), 3),
        launches=round(sum(count for _, count in everything.values())), kinds=everything,
        longest={name[:150]: line for name, line in list(lines(names).items())[:_LONGEST]})


def main(record: Record, options: argparse.Namespace) -> None:
    """Training steps in bf16, channels-last, batch 64."""
    init_default_scope('mmpretrain')
    clocks, tiny = Device(options.device), options.dry_run
    batch, size = (2, 32) if tiny else (64, 224)
    activities = [ProfilerActivity.CUDA if clocks.on_gpu else ProfilerActivity.CPU]
    for name in TINY_NETWORKS if tiny else NAMES:
        with record.attempt(name):
            torch.manual_seed(0)
            step = training_step((narrow if tiny else build)(name), options.device, batch, size,
                                 'bfloat16', 'nhwc')
            for _ in range(2):
                step()
            clocks.synchronize()
            with profile(activities=activities) as found:
                for _ in range(_STEPS):
                    step()
                clocks.synchronize()
            wanted = (torch.autograd.DeviceType.CUDA if clocks.on_gpu
                      else torch.autograd.DeviceType.CPU)
            kernels = [(event.name, event.time_range.elapsed_us()) for event in found.events()
                       if event.device_type == wanted]
            record.row('profiles', network=name, **summary(kernels, _STEPS))
        step = None
        if clocks.on_gpu:
            torch.cuda.empty_cache()
