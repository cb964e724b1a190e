"""(a) Whole networks by this package's kernels against the same networks by torch's functions."""
import argparse
import contextlib
import copy
import os
from typing import Dict, Iterator

import torch
import torch.nn.functional as F
from bench_host import narrow
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from gpu.networks import NAMES, TINY_NETWORKS, build
from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops import avg_pool, batch_norm_act, channel_gate, grouped_conv
from mmcontext.ops.local_aggregation.backends import BACKEND_VARIABLE

_OFF = {batch_norm_act.METHOD_VARIABLE: 'torch', grouped_conv.METHOD_VARIABLE: 'grouped',
        avg_pool.METHOD_VARIABLE: 'torch', channel_gate.METHOD_VARIABLE: 'torch',
        BACKEND_VARIABLE: 'torch'}
# Float32 rounds differently in every order of sums, which 50 layers in training amplify.
_TOLERANCE = {'float32': 1e-2, 'bfloat16': 0.3}


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Within it torch's functions serve everything."""
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
    return {'logits': logits.detach().float(), **{
        name: p.grad for name, p in model.named_parameters() if p.grad is not None}, **{
            name: b.float() for name, b in model.named_buffers()}}


def distance(found: Dict[str, Tensor], expected: Dict[str, Tensor]) -> Dict[str, float]:
    """Relative distance of the logits, and the median and largest over all other tensors."""
    each = {name: ((found[name] - e).norm() / e.norm().clamp_min(1e-20)).item()
            for name, e in expected.items()}
    others = sorted(value for name, value in each.items() if name != 'logits')
    return dict(logits=each['logits'], median=others[len(others) // 2], largest=others[-1],
                missing=len(expected.keys() ^ found.keys()))


def main(record: Record, options: argparse.Namespace) -> None:
    """One training step each, batch 16, 128 px, channels-last."""
    init_default_scope('mmpretrain')
    clocks, tiny = Device(options.device), options.dry_run
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name in TINY_NETWORKS if tiny else NAMES:
        torch.manual_seed(0)
        with record.attempt(name):
            model = (narrow if tiny else build)(name).to(
                options.device, memory_format=torch.channels_last)
            images = torch.randn(2 if tiny else 16, 3, 128, 128, device=options.device).contiguous(
                memory_format=torch.channels_last)
            labels = torch.randint(0, 1000, images.shape[:1], device=options.device)
            for dtype, tolerance in _TOLERANCE.items():
                found = results(model, images, labels, dtype)
                with switched_off():
                    expected = results(model, images, labels, dtype)
                row = distance(found, expected)
                record.row('agreement', network=name, dtype=dtype,
                           **{key: float(f'{value:.2e}') for key, value in row.items()})
                if row['missing'] or not row['median'] <= tolerance:
                    record.fail(f'{name} {dtype}', f'{row}')
        if clocks.on_gpu:
            torch.cuda.empty_cache()
