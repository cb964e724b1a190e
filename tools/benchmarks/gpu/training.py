"""(g) Training and test scripts on the digits in all three libraries; (h) CIFAR-10."""
import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import List, NamedTuple, Optional

from mmengine.config import Config

from gpu.record import Record

ROOT = Path(__file__).resolve().parents[3]


class Run(NamedTuple):
    """A short training run: how its data are written, and how much of it is run."""
    config: str
    data: tuple
    options: tuple
    metric: str


# Few iterations: this shows that the scripts train under AMP and that the test reproduces the
# result of the last validation.
RUNS = {
    'classification': Run(
        'configs/cednet/cednet26_digits.py', ('digits_imagenet.py', ),
        ('train_cfg.max_epochs=6', 'train_cfg.val_interval=6', 'param_scheduler.1.end=6',
         'param_scheduler.1.T_max=5', 'train_dataloader.batch_size=64'), 'accuracy/top1'),
    'segmentation': Run(
        'configs/pyconv/pyconvsegnet_pyconvresnet18_digits.py',
        ('digits_scenes.py', '--layout', 'cityscapes', '--train', '300', '--val', '30'),
        ('train_cfg.max_iters=300', 'train_cfg.val_interval=300', 'param_scheduler.1.end=300',
         'default_hooks.checkpoint.interval=300', 'train_dataloader.batch_size=8'), 'mIoU'),
    'detection': Run(
        'configs/cednet/mask_rcnn_cednet26_fpn_digits.py',
        ('digits_scenes.py', '--layout', 'coco', '--train', '400', '--val', '40'),
        ('train_cfg.max_epochs=2', 'train_cfg.val_interval=2', 'param_scheduler.1.end=2',
         'param_scheduler.1.T_max=2'), 'coco/bbox_mAP'),
}


def _call(command: List[str], log: Path, environment: Optional[dict] = None) -> None:
    with open(log, 'a') as stream:
        code = subprocess.call(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT,
                               env=environment)
    if code:
        lines = log.read_text(errors='replace').splitlines()[-8:]
        print('\n'.join(lines), flush=True)
        raise RuntimeError(f'{" ".join(command[:3])} ended with {code}: {(lines or [""])[-1]}')


def _last_validation(work: Path, metric: str) -> Optional[float]:
    """The metric of the last validation in the logs of a run."""
    value = None
    for path in sorted(work.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            value = json.loads(line).get(metric, value)
    return value


def digits(record: Record, options: argparse.Namespace) -> None:
    """``dist_train.sh ... --amp``, then ``dist_test.sh`` on its checkpoint."""
    environment = dict(os.environ, PYTHON=sys.executable)
    work = Path(options.work, 'digits')
    work.mkdir(parents=True, exist_ok=True)
    if options.dry_run:  # the scripts then print what they would start
        environment['PYTHON'] = 'echo'
    for name, run in RUNS.items():
        with record.attempt(f'digits, {name}'):
            Config.fromfile(ROOT / run.config).merge_from_dict(
                dict(option.split('=') for option in run.options))
            log, folder = work / f'{name}.log', work / name
            if not options.dry_run:
                _call([sys.executable, f'tools/dataset_converters/{run.data[0]}', *run.data[1:]],
                      log)
            start = time.perf_counter()
            _call(['bash', 'tools/dist_train.sh', run.config, '1', '--amp', '--work-dir',
                   str(folder), '--cfg-options', *run.options], log, environment)
            trained = time.perf_counter() - start
            checkpoint = 'none' if options.dry_run else (
                folder / 'last_checkpoint').read_text().strip()
            metrics = work / f'{name}.json'
            _call(['bash', 'tools/dist_test.sh', run.config, checkpoint, '1', '--out',
                   str(metrics), '--out-item', 'metrics', '--work-dir', str(folder / 'test')],
                  log, environment)
            found, seen = (None, None) if options.dry_run else (
                json.loads(metrics.read_text())[run.metric],
                _last_validation(folder, run.metric))
            record.row('digits', library=name, config=run.config, metric=run.metric,
                       seconds=round(trained, 1), validated=seen, tested=found)
            # mmengine rounds some metrics when it logs them.
            if found is not None and (seen is None or abs(found - seen) > 2e-3 * abs(seen)):
                record.fail(f'digits, {name}', f'validation found {seen}, the test {found}')


def _cifar_folder(source: str, work: Path) -> Path:
    """ImageNet layout with train and val, from an archive or an npz."""
    folder = work / 'cifar10'
    if (folder / 'val').is_dir():
        return folder
    if source.endswith('.npz'):
        _call([sys.executable, 'tools/dataset_converters/cifar_npz.py', source, str(folder)],
              work / 'cifar10.log')
        return folder
    with tarfile.open(source) as archive:
        extra = dict(filter='data') if hasattr(tarfile, 'data_filter') else {}
        archive.extractall(work / 'cifar10.part', **extra)
    train, = (work / 'cifar10.part').rglob('train')
    (train.parent / 'test').rename(train.parent / 'val')
    train.parent.rename(folder)
    return folder


def cifar10(record: Record, options: argparse.Namespace) -> None:
    """Train one network after another while there is time left; finished ones are kept."""
    work = Path(options.work, 'cifar')
    work.mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        from train_cifar10 import NETWORKS, make_config
        for network in NETWORKS:
            config = make_config('data', network, 2, 'work', workers=1)
            record.row('cifar10', network=network, epochs=config.train_cfg.max_epochs)
        return
    folder, epochs = _cifar_folder(options.data, work), 10
    for network in ('ResNet-26', 'CedNet-26', 'RedNet-26', 'ResNet-50', 'CoTNet-50',
                    'CoResNet-50', 'ResNet-18', 'PyConvResNet-18'):
        if record.has('cifar10', network=network, epochs=epochs):
            continue
        with record.attempt(f'CIFAR-10, {network}'):
            _call([sys.executable, 'tools/benchmarks/train_cifar10.py', str(folder), '--epochs',
                   str(epochs), '--networks', network, '--workers', '8', '--work-dir',
                   str(work / 'runs')], work / f'{network}.log')
            results = json.loads((work / 'runs/results.json').read_text())
            record.row('cifar10', network=network, **results[network])
