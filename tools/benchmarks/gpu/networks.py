"""(d) Whole networks against mmpretrain's ResNet-50, in one process."""
import argparse
import functools
import time
from typing import Callable, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from bench_host import narrow
from bench_models import BASELINE, NETWORKS, Classifier
from mmengine.registry import init_default_scope
from torch import nn

from gpu.record import Record
from gpu.timing import Device

# The most informative first, in case time runs out.
NAMES = (BASELINE, 'CedNet-50', 'CoTNet-50', 'RedNet-50', 'CoResNet-50', 'PyConvResNet-50',
         'PyConvHGResNet-50', 'SE-CoTNetD-50', 'CoTNeXt-50', 'CKResNet-50')
TINY_NETWORKS = ('CedNet-50', )
_MEMORY = dict(nchw=torch.contiguous_format, nhwc=torch.channels_last)


class Setting(NamedTuple):
    """How a network runs; dtype 'float32' is exact, 'tf32' uses the tensor cores."""
    dtype: str = 'bfloat16'
    layout: str = 'nhwc'
    compiled: bool = False


def build(name: str) -> nn.Module:
    """A network with a classifier, as published."""
    return Classifier(NETWORKS[name])


def _autocast(device: str, dtype: str) -> torch.autocast:
    half = dtype in ('bfloat16', 'float16')
    return torch.autocast(device, getattr(torch, dtype) if half else torch.bfloat16, enabled=half)


def _images(device: str, batch: int, size: int, layout: str) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, device=device).contiguous(
        memory_format=_MEMORY[layout])


def _scaler(device: str):
    if hasattr(torch.amp, 'GradScaler'):  # torch 2.3
        return torch.amp.GradScaler(device)
    return torch.cuda.amp.GradScaler(enabled=device == 'cuda')


def training_step(model: nn.Module, device: str, batch: int, size: int, dtype: str,
                  layout: str) -> Callable[[], torch.Tensor]:
    """Forward, loss, backward and SGD step; returns the loss."""
    model.to(device, memory_format=_MEMORY[layout]).train()
    images = _images(device, batch, size, layout)
    labels = torch.randint(0, 1000, (batch, ), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    scaler = _scaler(device) if dtype == 'float16' else None

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with _autocast(device, dtype):
            loss = F.cross_entropy(model(images), labels)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss

    return step


def inference_step(model: nn.Module, device: str, batch: int, size: int, dtype: str,
                   layout: str) -> Callable[[], torch.Tensor]:
    """One forward pass without gradients."""
    model.to(device, memory_format=_MEMORY[layout]).eval()
    images = _images(device, batch, size, layout)

    def step() -> torch.Tensor:
        with torch.no_grad(), _autocast(device, dtype):
            return model(images)

    return step


def figures(step: Callable[[], torch.Tensor], clocks: Device, batch: int, repeats: int,
            graph: bool) -> dict:
    """Images per second eagerly and as a graph, host milliseconds, peak memory, first step."""
    clocks.synchronize()
    start = time.perf_counter()
    value = step()
    clocks.synchronize()
    row = dict(first_step_s=round(time.perf_counter() - start, 3))
    # With norms that have seen few images, an untrained network may overflow at inference.
    row['finite'] = bool(value.float().isfinite().all())
    del value
    for _ in range(min(repeats, 2)):
        step()
    row['peak_mib'] = round(clocks.peak_mib(step, whole=True), 1)
    row['host_ms'] = round(1e-3 * clocks.host_us(step, min(repeats, 3)), 2)
    row['eager_ms'] = round(clocks.wall_ms(step, repeats), 3)
    row['eager_per_s'] = round(1e3 * batch / row['eager_ms'], 1)
    if graph:
        replay = clocks.capture(step)
        clocks.wall_ms(replay, 1)
        row['graph_ms'] = round(clocks.wall_ms(replay, repeats), 3)
        row['graph_per_s'] = round(1e3 * batch / row['graph_ms'], 1)
    return row


def measure(record: Record, options: argparse.Namespace, names: Tuple[str, ...],
            settings: List[Setting], modes: Tuple[str, ...]) -> None:
    """Measure all networks in all settings; rows of an earlier run are kept."""
    init_default_scope('mmpretrain')
    clocks = Device(options.device)
    tiny = options.dry_run
    size, repeats = (32, 1) if tiny else (224, 10)
    batches = (1, 2) if tiny else (1, 64)
    torch.backends.cudnn.benchmark = False
    for setting in settings[:1 if tiny else None]:
        tf32 = setting.dtype == 'tf32'
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for name in TINY_NETWORKS if tiny else names:
            model = None
            for mode in modes:
                key = dict(network=name, mode=mode, **setting._asdict())
                if record.has('networks', **key):
                    continue
                with record.attempt(f'{name} {mode} {tuple(setting)}'):
                    if model is None:
                        torch.manual_seed(0)
                        model = (narrow if tiny else build)(name)
                        if setting.compiled:
                            model = torch.compile(model, disable=tiny)
                    model.zero_grad()
                    batch = batches[mode != 'infer_1']
                    make = training_step if mode == 'train' else inference_step
                    step = make(model, options.device, batch, size, setting.dtype, setting.layout)
                    # A gradient scaler reads the overflow flag back, which a graph cannot do.
                    graph = not (mode == 'train' and setting.dtype == 'float16')
                    record.row('networks', **key, batch=batch,
                               **figures(step, clocks, batch, repeats, graph))
                step = None
                if clocks.on_gpu:
                    torch.cuda.empty_cache()
            if setting.compiled:
                torch._dynamo.reset()


def _run(settings: List[Setting], names: Tuple[str, ...], modes: Tuple[str, ...]) -> Callable:
    return functools.partial(measure, names=names, settings=settings, modes=modes)


# AMP in bf16, channels-last: how the networks are trained.
main = _run([Setting()], NAMES, ('train', 'infer_64', 'infer_1'))
precisions = _run(
    [Setting('float16'), Setting('tf32', 'nchw'), Setting('bfloat16', 'nchw'),
     Setting('float32', 'nchw'), Setting('tf32')],
    (BASELINE, 'CedNet-50', 'CoTNet-50', 'PyConvHGResNet-50'), ('train', 'infer_64'))
compiled = _run([Setting(compiled=True)], (BASELINE, 'CedNet-50', 'CoTNet-50', 'RedNet-50'),
                ('train', 'infer_64'))
