"""Train one small network of each family on CIFAR images, beside ResNets of the same depth.

    python tools/dataset_converters/cifar_npz.py cifar10.npz data/cifar10
    python tools/benchmarks/train_cifar10.py data/cifar10 --epochs 10

All networks have their published structure at a smaller width, and all are trained alike:
batches of 64, AdamW (learning rate 2e-3, weight decay 0.05), one epoch of linear warm-up, then
cosine, random crops with padding 4 and flips, residual branches that start at zero, one seed.
The accuracy is that of the last epoch. It shows that the networks learn, not how good they are:
the published stem and pool reduce 32x32 pixels to 8x8 before the first stage.
"""
import argparse
import json
import sys
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models.backbones.resnet import Bottleneck, ResNet

from mmcontext.registry import MODELS


@MODELS.register_module()
class PlainResNet26(ResNet):
    """mmpretrain's ResNet with the blocks of RedNet-26 and CedNet-26."""
    arch_settings = {26: (Bottleneck, (1, 2, 4, 1))}


# Backbone and channels of its output. PyConv needs the full width: its first stage has 16
# groups in a quarter of it.
NETWORKS = {
    'ResNet-50': (dict(type='ResNet', depth=50, stem_channels=16, base_channels=16), 512),
    'CoResNet-50': (dict(type='mmcontext.CoResNet', depth=50, base_channels=16), 512),
    'CoTNet-50': (dict(type='mmcontext.CoTNet', depth=50, base_channels=16), 512),
    'ResNet-26': (dict(
        type='mmcontext.PlainResNet26', depth=26, stem_channels=32, base_channels=32), 1024),
    'RedNet-26': (dict(type='mmcontext.RedNet', depth=26, base_channels=32), 1024),
    'CedNet-26': (dict(type='mmcontext.CedNet', depth=26, base_channels=32), 1024),
    'ResNet-18': (dict(type='ResNet', depth=18), 512),
    'PyConvResNet-18': (dict(type='mmcontext.PyConvResNet', depth=18), 512),
}


def make_config(data: str, network: str, epochs: int, work_dir: str, workers: int = 0) -> Config:
    """Config of one training run."""
    backbone, channels = NETWORKS[network]
    backbone = dict(backbone, zero_init_residual=True)

    def loader(split: str, batch_size: int, transforms: list) -> dict:
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
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=channels)),
        data_preprocessor=dict(
            num_classes=10, mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=True),
        train_dataloader=loader('train', 64, [
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5)]),
        val_dataloader=loader('val', 100, []),
        val_evaluator=dict(type='Accuracy', topk=(1, )),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', T_max=epochs - 1, begin=1, end=epochs,
                 convert_to_iter_based=True)],
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=epochs, max_keep_ckpts=1),
            logger=dict(type='LoggerHook', interval=40)),
        randomness=dict(seed=0)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help='ImageNet-layout folder with train and val')
    parser.add_argument('--epochs', type=int, default=10, help='at least 2')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--work-dir', default='work_dirs/cifar10',
                        help='logs, and results.json with the table')
    parser.add_argument('--workers', type=int, default=0, help='processes that load images')
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error(f'--epochs must be at least 2, got {args.epochs}')
    for split in ('train', 'val'):
        if not Path(args.data, split).is_dir():
            parser.error(f'{args.data} has no folder {split}')

    path = Path(args.work_dir, 'results.json')
    results = json.loads(path.read_text()) if path.is_file() else {}
    for network in args.networks:
        start = time.time()
        runner = Runner.from_cfg(make_config(
            args.data, network, args.epochs, str(Path(args.work_dir, network)), args.workers))
        runner.train()
        accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
        results[network] = dict(
            epochs=args.epochs, top1=round(float(accuracy), 2),
            params=sum(p.numel() for p in runner.model.parameters()),
            minutes=round((time.time() - start) / 60, 1))
        path.write_text(json.dumps(results, indent=2))
    print(f'{"network":<18}{"params":>10}{"epochs":>8}{"top-1 %":>9}{"minutes":>9}')
    for network, row in results.items():
        print(f'{network:<18}{row["params"]:>10}{row["epochs"]:>8}{row["top1"]:>9}'
              f'{row["minutes"]:>9}')


if __name__ == '__main__':
    sys.exit(main())
