"""Train the families' networks of depth 26 on CIFAR-10, all with the same recipe, in slices.

    python tools/benchmarks/train_cifar10.py data/cifar10_60k --epochs 100 --minutes 30
    python tools/benchmarks/train_cifar10.py data/cifar10_60k --epochs 100 --minutes 30  # resume
    python tools/benchmarks/train_cifar10.py --table --plot accuracy.svg

The data are in ImageNet layout: folders train and test (or val) with one folder per class. Every
network has the blocks of RedNet-26 (1, 2, 4, 1), a width that brings its multiply-adds within a
fifth of ResNet-26's, and instead of its stem a 3x3 convolution without stride or pooling, as
usual for 32 pixels. Recipe: batches of 128, SGD 0.1 with Nesterov momentum 0.9, weight decay 5e-4
except for norms and biases, one epoch of linear warm-up, then cosine, label smoothing 0.1, random
crops with padding 4 and flips, zero-initialised last norms of residual branches. The accuracy is
that of the last epoch.

--minutes ends a slice with the first epoch that finishes after that time; the same command
continues it. results.json in the work directory records accuracy, seconds and images per second
for every epoch.
"""
import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import List, Optional

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner, find_latest_checkpoint
from mmpretrain.models.backbones.resnet import Bottleneck
from mmpretrain.models.backbones.resnet_cifar import ResNet_CIFAR
from torch import nn

from mmcontext.engine.flops import config_complexity
from mmcontext.models.backbones import CedNet, CoResNet, CoTNet, PyConvResNet, RedNet
from mmcontext.registry import MODELS

BLOCKS = (1, 2, 4, 1)


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """mmengine's own for mixed precision is for accelerators alone."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module):
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


@MODELS.register_module()
class ResNet26ForCIFAR(ResNet_CIFAR):
    """mmpretrain's ResNet for CIFAR with the same blocks."""
    arch_settings = {26: (Bottleneck, BLOCKS)}


def for_cifar(base: type, **choices) -> type:
    """A family's network with the same blocks and the stem for 32 pixels."""

    def make_stem(self, in_channels: int) -> nn.Sequential:
        return nn.Sequential(self._conv_norm_act(in_channels, self.base_channels, 3, padding=1))

    return MODELS.register_module()(type(f'{base.__name__}26ForCIFAR', (base, ), dict(
        __doc__=for_cifar.__doc__, arch_settings={26: BLOCKS}, strides=(1, 2, 2, 2),
        max_pool=False, _make_stem=make_stem, **choices)))


for_cifar(CoResNet)
# A quarter of 32 channels cannot have 16 groups.
for_cifar(PyConvResNet, pyramid_groups=((1, 2, 4, 8), (1, 2, 4), (1, 2), (1, )))
for_cifar(CoTNet)
for_cifar(RedNet)
for_cifar(CedNet)

# Width of the first stage.
NETWORKS = dict(ResNet=32, CoResNet=32, PyConvResNet=32, CoTNet=32, RedNet=40, CedNet=40)
# 40 channels cannot be divided into groups of 16, the published number.
LAYERS = dict(RedNet=dict(group_channels=8), CedNet=dict(group_channels=8, gate_groups=20))


class Slice(Hook):
    """Ends the training after an epoch when time is up, and records what it measured."""

    priority = 'VERY_LOW'

    def __init__(self, path: Path, name: str, deadline: Optional[float]) -> None:
        self.path, self.name, self.deadline = path, name, deadline

    def before_train_epoch(self, runner) -> None:
        self.start = time.time()

    def after_train_epoch(self, runner) -> None:
        self.seconds = time.time() - self.start

    def after_val_epoch(self, runner, metrics: Optional[dict] = None) -> None:
        results = json.loads(self.path.read_text()) if self.path.is_file() else {}
        device = (torch.cuda.get_device_name() if torch.cuda.is_available() else
                  f'CPU, {torch.get_num_threads()} threads')
        if isinstance(runner.optim_wrapper, Bfloat16OptimWrapper):
            device += ', bfloat16'
        row = results.setdefault(self.name, dict(device=device, epochs={}))
        images = len(runner.train_dataloader.dataset)
        row['epochs'][str(runner.epoch)] = dict(
            top1=round(float(metrics['accuracy/top1']), 2), seconds=round(self.seconds, 1),
            images_per_second=round(images / self.seconds, 1))
        self.path.write_text(json.dumps(results, indent=1))
        if self.deadline is not None and time.time() > self.deadline:
            runner.train_loop.stop_training = True


def make_config(data: str, network: str, epochs: int, seed: int, work_dir: str,
                width: Optional[int] = None, workers: int = 2,
                bfloat16: bool = False) -> Config:
    """Config of one training run."""
    width = width or NETWORKS[network]
    options = dict(stem_channels=width) if network == 'ResNet' else dict(
        layer_cfg=LAYERS.get(network))

    def loader(split: str, batch_size: int, transforms: List[dict]) -> dict:
        return dict(
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
            dataset=dict(
                type='CustomDataset', data_root=data, data_prefix=split,
                pipeline=[dict(type='LoadImageFromFile'), *transforms, dict(type='PackInputs')]))

    return Config(dict(
        default_scope='mmpretrain',
        work_dir=work_dir,
        model=dict(
            type='ImageClassifier',
            backbone=dict(type=f'mmcontext.{network}26ForCIFAR', depth=26, base_channels=width,
                          zero_init_residual=True, **options),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=32 * width,
                      loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=10))),
        data_preprocessor=dict(
            num_classes=10, mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=True),
        train_dataloader=loader('train', 128, [
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5)]),
        val_dataloader=loader(test_folder(data), 500, []),
        val_evaluator=dict(type='Accuracy', topk=(1, )),
        optim_wrapper=dict(
            type='Bfloat16OptimWrapper' if bfloat16 else 'OptimWrapper',
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
            paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', T_max=epochs - 1, begin=1, end=epochs,
                 convert_to_iter_based=True)],
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
            logger=dict(type='LoggerHook', interval=100)),
        randomness=dict(seed=seed)))


def test_folder(data: str) -> str:
    """'test', or 'val' if there is no such folder."""
    return 'test' if Path(data, 'test').is_dir() else 'val'


def print_table(results: dict) -> None:
    """Size, cost and accuracy of the runs."""
    print(f'{"network, seed":<20}{"M params":>9}{"M FLOPs":>9}{"epochs":>8}{"top-1 %":>9}'
          f'{"images/s":>10}  device')
    for name, row in results.items():
        network = name.split(',')[0]
        counts = config_complexity(make_config('', network, 2, 0, ''), (32, 32))
        last = max(row['epochs'], key=int)
        speeds = sorted(e['images_per_second'] for e in row['epochs'].values())
        print(f'{name:<20}{counts.params / 1e6:>9.3f}{counts.flops / 1e6:>9.1f}{last:>8}'
              f'{row["epochs"][last]["top1"]:>9}{speeds[len(speeds) // 2]:>10}  {row["device"]}')


def plot(results: dict, path: str) -> None:
    """Accuracy of every epoch over the time of training until then, and of the last over FLOPs."""
    figure = Figure((10, 4), layout='constrained')
    over_time, over_flops = figure.subplots(1, 2, sharey=True)
    for name, row in results.items():
        epochs = sorted(row['epochs'], key=int)
        # By the fastest: a slice may have lost an epoch, and other work may have slowed one.
        seconds = min(epoch['seconds'] for epoch in row['epochs'].values())
        minutes = [int(epoch) * seconds / 60 for epoch in epochs]
        accuracies = [row['epochs'][epoch]['top1'] for epoch in epochs]
        line, = over_time.plot(minutes, accuracies, marker='.', label=name)
        flops = config_complexity(make_config('', name.split(',')[0], 2, 0, ''), (32, 32)).flops
        over_flops.plot(flops / 1e6, accuracies[-1], 'o', color=line.get_color())
    over_time.set(xlabel='minutes of training', ylabel='top-1 (%)')
    over_flops.set(xlabel='M FLOPs')
    over_time.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', nargs='?', help='folder with train and test, in ImageNet layout')
    parser.add_argument('--epochs', type=int, default=100, help='of the whole run, at least 2')
    parser.add_argument('--minutes', type=float, help='end of the slice; none by default')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--work-dir', default='work_dirs/cifar10',
                        help='logs, checkpoints and results.json')
    parser.add_argument('--workers', type=int, default=2, help='processes that load images')
    parser.add_argument('--bfloat16', action='store_true',
                        help='train under autocast, channels-last')
    parser.add_argument('--table', action='store_true', help='print what results.json has')
    parser.add_argument('--plot', metavar='FILE', help='with --table: draw it too, as .svg or .png')
    args = parser.parse_args()
    path = Path(args.work_dir, 'results.json')
    if args.table:
        results = json.loads(path.read_text())
        print_table(results)
        if args.plot:
            plot(results, args.plot)
        return
    if args.epochs < 2:
        parser.error(f'--epochs must be at least 2, got {args.epochs}')
    if args.data is None or not Path(args.data, 'train').is_dir():
        parser.error(f'data must be a folder with a folder train, got {args.data!r}')

    deadline = None if args.minutes is None else time.time() + 60 * args.minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    trained = 0
    for seed in args.seeds:
        for network in args.networks:
            name = f'{network}, {seed}'
            done = json.loads(path.read_text()) if path.is_file() else {}
            if str(args.epochs) in done.get(name, {}).get('epochs', {}):
                continue
            if trained and deadline is not None and time.time() > deadline:
                return
            work_dir = Path(args.work_dir, f'{network}_{seed}')
            cfg = make_config(args.data, network, args.epochs, seed, str(work_dir),
                              workers=args.workers, bfloat16=args.bfloat16)
            cfg.resume = work_dir.is_dir() and find_latest_checkpoint(str(work_dir)) is not None
            runner = Runner.from_cfg(cfg)
            if args.bfloat16:
                runner.model.to(memory_format=torch.channels_last)
            runner.register_hook(Slice(path, name, deadline))
            runner.train()
            trained += 1
    print_table(json.loads(path.read_text()))


if __name__ == '__main__':
    sys.exit(main())
