"""(a) Whole networks with this package's kernels and with torch's functions, against float64."""
import argparse
import contextlib
import copy
import os
import statistics
from typing import Dict, Iterator, Tuple

import torch
import torch.nn.functional as F
from bench_host import narrow
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from gpu.networks import NAMES, TINY_NETWORKS, build
from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops import (
    avg_pool,
    batch_norm_act,
    channel_gate,
    group_norm,
    grouped_conv,
    pair_conv,
)
from mmcontext.ops.local_aggregation.backends import BACKEND_VARIABLE
from mmcontext.ops.local_aggregation.by_rows import ROWS_VARIABLE

_OFF = {batch_norm_act.METHOD_VARIABLE: 'torch', grouped_conv.METHOD_VARIABLE: 'grouped',
        avg_pool.METHOD_VARIABLE: 'torch', channel_gate.METHOD_VARIABLE: 'torch',
        pair_conv.METHOD_VARIABLE: 'torch', group_norm.METHOD_VARIABLE: 'torch',
        BACKEND_VARIABLE: 'torch', ROWS_VARIABLE: 'torch'}
_DTYPES = ('float32', 'bfloat16')
# An untrained network in training mode amplifies rounding errors; torch's own distance from
# float64 shows by how much.
_SLACK, _LEAST = 2., 1e-3


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Context in which torch's functions are used for everything."""
    before = {name: os.environ.get(name) for name in _OFF}
    os.environ.update(_OFF)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def results(model: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Dict[str, Tensor]:
    """Logits, all gradients and buffers of one training step."""
    model = copy.deepcopy(model).train()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == 'bfloat16'):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    return {'logits': logits.detach().double(), **{
        name: p.grad for name, p in model.named_parameters() if p.grad is not None}, **{
            name: b.double() for name, b in model.named_buffers()}}


def distances(found: Dict[str, Tensor], exact: Dict[str, Tensor]) -> Tuple[float, float]:
    """Relative distances from the exact values: of the logits, and the median over the rest."""
    if found.keys() != exact.keys():
        raise KeyError(f'tensors without a gradient: {sorted(found.keys() ^ exact.keys())[:5]}')
    each = {name: ((found[name] - e).norm() / e.norm().clamp_min(1e-20)).item()
            for name, e in exact.items()}
    return each.pop('logits'), statistics.median(each.values())


def main(record: Record, options: argparse.Namespace) -> None:
    """One training step per network, batch 16, 96 px, channels-last."""
    init_default_scope('mmpretrain')
    clocks, tiny = Device(options.device), options.dry_run
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name in TINY_NETWORKS if tiny else NAMES:
        torch.manual_seed(0)
        with record.attempt(name):
            model = (narrow if tiny else build)(name).to(
                options.device, memory_format=torch.channels_last)
            images = torch.randn(2 if tiny else 16, 3, 96, 96, device=options.device).contiguous(
                memory_format=torch.channels_last)
            labels = torch.randint(0, 1000, images.shape[:1], device=options.device)
            with switched_off():
                exact = results(copy.deepcopy(model).double(), images.double(), labels, 'float64')
            for dtype in _DTYPES:
                ours = distances(results(model, images, labels, dtype), exact)
                with switched_off():
                    torchs = distances(results(model, images, labels, dtype), exact)
                shown = [f'{value:.1e}' for value in (*ours, *torchs)]
                record.row('agreement', network=name, dtype=dtype, logits=shown[0],
                           logits_by_torch=shown[2], others=shown[1], others_by_torch=shown[3])
                if not all(a <= _SLACK * b + _LEAST for a, b in zip(ours, torchs)):
                    record.fail(f'{name} {dtype}', f'distances {shown}')
        if clocks.on_gpu:
            torch.cuda.empty_cache()
