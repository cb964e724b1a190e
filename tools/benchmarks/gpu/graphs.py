"""(d) ``CudaGraphHook``: 50 steps under AMP compared with eager ones, and their speed."""
import argparse
import copy
from typing import List, Tuple

import torch
from bench_host import narrow
from bench_models import BASELINE
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import init_default_scope
from torch import nn

from gpu.networks import build
from gpu.record import Record
from gpu.timing import Device
from mmcontext.engine.hooks.cuda_graph_hook import GraphedForward

_NAMES = (BASELINE, 'CedNet-50', 'CoTNet-50', 'RedNet-50', 'PyConvHGResNet-50', 'CoTNeXt-50')
_STEPS = 50


def _train(model: nn.Module, batches: List[Tuple[torch.Tensor, torch.Tensor]], graphs: bool,
           device: str, clocks: Device) -> Tuple[List[float], float]:
    """Losses, and milliseconds per step over the last half."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if device == 'cuda':
        wrapper = AmpOptimWrapper(dtype='bfloat16', optimizer=optimizer)
    else:
        wrapper = OptimWrapper(optimizer=optimizer)
    if graphs:
        model.backbone.forward = GraphedForward(model.backbone, 1, 3)
    losses, turn = [], 0

    def step() -> None:
        nonlocal turn
        images, labels = batches[turn % len(batches)]
        turn += 1
        with wrapper.optim_context(model):
            loss = nn.functional.cross_entropy(model(images), labels)
        wrapper.update_params(loss)
        losses.append(loss.detach())

    for _ in range(_STEPS // 2):
        step()
    ms = clocks.wall_ms(step, _STEPS // 2)
    return [float(loss) for loss in losses], ms


def main(record: Record, options: argparse.Namespace) -> None:
    """Contiguous images, as the runner gives them; batch 64."""
    init_default_scope('mmpretrain')
    clocks, tiny = Device(options.device), options.dry_run
    batch, size = (2, 32) if tiny else (64, 224)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(batch, 3, size, size, generator=generator).to(options.device),
                torch.randint(0, 1000, (batch, ), generator=generator).to(options.device))
               for _ in range(4)]
    for name in _NAMES[:2] if tiny else _NAMES:
        with record.attempt(name):
            torch.manual_seed(0)
            model = (narrow if tiny else build)(name).to(options.device).train()
            row, all_losses = dict(network=name), []
            for graphs in (False, True):
                losses, ms = _train(copy.deepcopy(model), batches, graphs, options.device, clocks)
                all_losses.append(losses)
                row['graph_per_s' if graphs else 'eager_per_s'] = round(1e3 * batch / ms, 1)
            differences = [abs(a - b) / max(abs(a), 1e-3) for a, b in zip(*all_losses)]
            row.update(first_loss=round(losses[0], 4), last_loss=round(losses[-1], 4),
                       first_differences=[f'{value:.1e}' for value in differences[:4]],
                       largest_difference=f'{max(differences):.1e}')
            record.row('graphs', **row)
        if clocks.on_gpu:
            torch.cuda.empty_cache()
