"""tools/train.py and tools/test.py on a tiny network and a folder of twelve images."""
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from common import ROOT, load_tool
from tolerances import SINGLE_LAYERS, assert_close

import mmcontext  # noqa: F401, lets torch.load read mmengine's checkpoints

pytest.importorskip('mmpretrain')

CONFIG = """
_base_ = 'mmpretrain::_base_/default_runtime.py'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4,
                  norm_cfg=dict(type='SyncBN', requires_grad=True)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32,
              loss=dict(type='CrossEntropyLoss'), topk=(1, )))
data_preprocessor = dict(num_classes=2, mean=[128.] * 3, std=[64.] * 3)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='{data}', data_prefix='train', pipeline=pipeline)
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dataset,
                        sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dataset,
                      sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, ))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=12)
val_cfg = test_cfg = dict()
env_cfg = dict(mp_cfg=dict(opencv_num_threads=1))
randomness = dict(seed=1)
"""
BY_EPOCH = """
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1, save_best='auto',
                                     rule='greater'))
"""
BY_ITER = """
train_cfg = dict(by_epoch=False, max_iters=12, val_interval=6)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=2))
train_dataloader['sampler'] = dict(type='InfiniteSampler', shuffle=True)
"""
# Ends the process like `kill -9`.
KILLER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Killer(Hook):
    priority = 'LOWEST'

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 8:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for index in range(12):
        folder = root / 'train' / 'ab'[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f'{index}.png'), image)
    return root


@pytest.fixture
def config(tmp_path, data):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG.format(data=data) + BY_EPOCH)
    return path


@pytest.fixture
def run_tool(tmp_path, monkeypatch):
    """Run a tool in this process, in an empty folder; returns its exit status."""
    from mmengine.runner import CheckpointLoader
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))

    def run_tool(name, *args):
        from mmcontext.utils.cli import run
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', *map(str, args)])
        return run(load_tool(f'{name}.py').main)

    return run_tool


def environment(*folders):
    path = os.pathsep.join([*map(str, folders), str(ROOT), os.environ.get('PYTHONPATH', '')])
    return dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1', PYTHON=sys.executable)


def assert_same(a, b, path=''):
    """Nested containers are equal; tensors up to rounding with other threads and alignment."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index in range(len(a)):
            assert_same(a[index], b[index], f'{path}[{index}]')
    elif isinstance(a, torch.Tensor):
        assert_close(a, b, SINGLE_LAYERS, msg=path)
    else:
        assert a == b, path


@pytest.mark.parametrize('loop, last', [(BY_EPOCH, 'epoch_4.pth'), (BY_ITER, 'iter_12.pth')],
                         ids=['by_epoch', 'by_iter'])
def test_a_killed_run_resumes_as_if_nothing_had_happened(
        tmp_path, data, run_tool, loop, last):
    config = tmp_path / 'tiny.py'
    config.write_text(CONFIG.format(data=data) + loop)
    (tmp_path / 'killer.py').write_text(KILLER)
    (tmp_path / 'tiny_killed.py').write_text(
        "_base_ = 'tiny.py'\ncustom_imports = dict(imports='killer')\n"
        "custom_hooks = [dict(type='Killer')]\n")
    killed = subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), 'tiny_killed.py', '--work-dir', 'killed'],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / 'killed' / last).exists()

    assert run_tool('train', config, '--work-dir', 'killed', '--resume', 'auto') == 0
    assert run_tool('train', config, '--work-dir', 'whole') == 0

    resumed = torch.load(tmp_path / 'killed' / last, weights_only=True)
    whole = torch.load(tmp_path / 'whole' / last, weights_only=True)
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(resumed[key], whole[key], key)
    for key in ('epoch', 'iter', 'seed'):
        assert resumed['meta'][key] == whole['meta'][key]
    logs = [json.loads(line) for log in (tmp_path / 'killed').glob('*/vis_data/scalars.json')
            for line in log.read_text().splitlines()]
    assert logs, 'the log of a killed run is kept'


INTERRUPTER = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module(force=True)
class Interrupter(Hook):
    def before_val_epoch(self, runner):
        if runner.iter == 12:
            raise KeyboardInterrupt
"""


@pytest.mark.parametrize('loop, last', [(BY_EPOCH, 'epoch_4'), (BY_ITER, 'iter_12')],
                         ids=['by_epoch', 'by_iter'])
def test_a_validation_that_was_interrupted_is_made_up_for(
        tmp_path, data, run_tool, capsys, monkeypatch, loop, last):
    config = tmp_path / 'tiny.py'
    config.write_text(CONFIG.format(data=data) + loop)
    (tmp_path / 'interrupter.py').write_text(INTERRUPTER)
    interrupted = tmp_path / 'tiny_interrupted.py'
    interrupted.write_text("_base_ = 'tiny.py'\ncustom_imports = dict(imports='interrupter')\n"
                           "custom_hooks = [dict(type='Interrupter')]\n")
    monkeypatch.syspath_prepend(tmp_path)
    # The last validation is the only one, so that its checkpoint is the best.
    options = ['--work-dir', 'run', '--cfg-options', 'train_cfg.val_interval=100',
               'default_hooks.checkpoint.save_best=auto', 'default_hooks.checkpoint.rule=greater']
    assert run_tool('train', interrupted, *options) == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'train.py: interrupted'
    left_over = tmp_path / f'run/.{last}.pth.part'
    left_over.write_bytes(b'cut')
    assert run_tool('train', config, '--resume', *options) == 0
    assert (tmp_path / f'run/best_accuracy_top1_{last}.pth').exists()
    assert not left_over.exists()


def test_test_py_scores_and_dumps_what_train_py_saved(tmp_path, config, run_tool):
    assert run_tool('train', config) == 0
    run = tmp_path / 'work_dirs/tiny'
    assert (run / 'epoch_4.pth').samefile((run / 'last_checkpoint').read_text())
    # max_keep_ckpts=1
    assert not (run / 'epoch_3.pth').exists() and len(list(run.glob('best_*.pth'))) == 1
    checkpoint = run / 'epoch_4.pth'
    assert run_tool('test', config, checkpoint, '--out', 'predictions.pkl') == 0
    assert run_tool('test', config, checkpoint, '--out', 'metrics.json',
                    '--out-item', 'metrics') == 0
    assert run_tool('test', config, checkpoint, '--out', 'm.txt', '--out-item', 'metrics') == 1
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    hits = [int(item['pred_label']) == int(item['gt_label']) for item in predictions]
    assert len(hits) == 12
    top1 = json.loads((tmp_path / 'metrics.json').read_text())['accuracy/top1']
    assert top1 == pytest.approx(100 * np.mean(hits))
    assert run_tool('test', config, checkpoint, '--tta') == 0


def alive(pid):
    """Whether a process is running; zombies are not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def wait_until(condition, process, log):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_two_processes_train_without_gpu_and_end_with_their_launcher(tmp_path, config):
    env = environment()
    env.pop('PORT', None)
    log = tmp_path / 'train.log'
    with open(log, 'w') as file:
        # exec replaces the shell by the launcher.
        launcher = subprocess.Popen(
            ['bash', str(ROOT / 'tools/dist_train.sh'), 'tiny.py', '2', '--work-dir', 'two',
             '--cfg-options', 'train_cfg.max_epochs=100000',
             'default_hooks.checkpoint.max_keep_ckpts=-1'],
            cwd=tmp_path, env=env, stdout=file, stderr=subprocess.STDOUT)
    checkpoint = tmp_path / 'two/epoch_1.pth'
    try:
        wait_until(checkpoint.exists, launcher, log)
        workers = Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()
    finally:
        launcher.kill()
        launcher.wait()
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, 'the processes outlive their launcher'
        time.sleep(0.1)
    assert log.read_text().count('No accelerator found: running 2 CPU processes') == 1
    # 12 images, 4 per iteration and process: 2 iterations, not 3.
    assert torch.load(checkpoint, weights_only=True)['meta']['iter'] == 2

    test = subprocess.run(
        ['bash', str(ROOT / 'tools/dist_test.sh'), 'tiny.py', 'two/epoch_1.pth', '2',
         '--out', 'metrics.json', '--out-item', 'metrics'],
        cwd=tmp_path, env=env, capture_output=True, text=True)
    assert test.returncode == 0, test.stderr
    assert 0 <= json.loads((tmp_path / 'metrics.json').read_text())['accuracy/top1'] <= 100


def one_sentence(capsys):
    """The message of a tool that failed."""
    lines = [line for line in capsys.readouterr().err.splitlines() if ': error: ' in line]
    assert len(lines) == 1
    return lines[0]


def test_unknown_config_is_named_and_a_near_one_offered(run_tool, capsys, monkeypatch):
    assert run_tool('train', 'nowhere.py') == 1
    assert 'config nowhere.py does not exist' in one_sentence(capsys)
    monkeypatch.chdir(ROOT)
    assert run_tool('train', 'configs/cednet/cednet26_digit.py') == 1
    assert 'did you mean configs/cednet/cednet26_digits.py?' in one_sentence(capsys)


@pytest.mark.parametrize('text, complaint', [
    ('model = dict(', 'cannot be read'), ("_base_ = 'nowhere.py'", 'cannot be read'),
    ("_base_ = 'mmpretrain::nowhere.py'", 'cannot be read'), ('', 'has no model')])
def test_a_config_that_cannot_be_used_is_one_sentence(tmp_path, run_tool, capsys, text, complaint):
    (tmp_path / 'wrong.py').write_text(text)
    assert run_tool('train', 'wrong.py') == 1
    assert f'wrong.py {complaint}' in one_sentence(capsys)


@pytest.mark.parametrize('state', ['missing', 'empty', 'no_images'])
def test_missing_or_empty_data_is_one_sentence(tmp_path, config, run_tool, capsys, state):
    root = tmp_path / 'nothing'
    if state != 'missing':
        (root / 'train').mkdir(parents=True)
    if state == 'no_images':
        (root / 'train/a').mkdir()
    assert run_tool('train', config, '--cfg-options',
                    f'train_dataloader.dataset.data_root={root}') == 1
    sentence = one_sentence(capsys)
    assert str(root) in sentence and '--cfg-options' in sentence


def test_images_gone_behind_an_annotation_file(tmp_path, config, run_tool, capsys):
    (tmp_path / 'list.txt').write_text('a/0.png 0\na/gone.png 0\n')
    assert run_tool('train', config, '--cfg-options',
                    f'train_dataloader.dataset.ann_file={tmp_path}/list.txt',
                    f'train_dataloader.dataset.data_prefix={tmp_path}/no_such_folder') == 1
    assert 'no_such_folder' in one_sentence(capsys)
    (tmp_path / 'list.txt').write_text('')
    assert run_tool('train', config, '--cfg-options',
                    f'train_dataloader.dataset.ann_file={tmp_path}/list.txt') == 1
    assert 'list.txt (ann_file of CustomDataset) is empty' in one_sentence(capsys)


def test_bad_checkpoints_are_one_sentence(tmp_path, config, run_tool, capsys):
    assert run_tool('test', config, 'none.pth') == 1
    assert 'none.pth does not exist' in one_sentence(capsys)
    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04' + bytes(100))
    for args in (('test', config, 'cut.pth'), ('train', config, '--resume', 'cut.pth'),
                 ('train', config, '--cfg-options', 'load_from=cut.pth')):
        assert run_tool(*args) == 1
        assert 'cut.pth is truncated or damaged' in one_sentence(capsys)
    assert run_tool(
        'train', config, '--cfg-options',
        'model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=cut.pth',
        '--work-dir', 'pretrained') == 1
    assert 'cut.pth is truncated or damaged' in one_sentence(capsys)


@pytest.mark.parametrize('options, complaint', [
    (['model.head.num_classes=3'], 'is of another model: size mismatch for head.fc.weight'),
    (['model.backbone.depth=34'], 'is of another model: missing keys'),
    (['optim_wrapper.optimizer.type=AdamW', 'optim_wrapper.optimizer._delete_=True'],
     'holds no training state of this config'),
], ids=['shape', 'keys', 'optimizer'])
def test_the_work_dir_of_another_config_is_one_sentence(config, run_tool, capsys, options,
                                                        complaint):
    assert run_tool('train', config, '--cfg-options', 'train_cfg.max_epochs=1') == 0
    assert run_tool('train', config, '--resume', '--cfg-options', *options) == 1
    assert complaint in one_sentence(capsys)
    if 'model' in complaint:
        checkpoint = 'work_dirs/tiny/epoch_1.pth'
        assert run_tool('test', config, checkpoint, '--cfg-options', *options) == 1
        assert complaint in one_sentence(capsys)


def test_a_disk_that_cannot_be_written_to_is_one_sentence(tmp_path, config, run_tool, capsys,
                                                          monkeypatch):
    (tmp_path / 'file').touch()
    assert run_tool('train', config, '--work-dir', 'file') == 1
    assert 'File exists: ' in one_sentence(capsys)

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', fsync)
    assert run_tool('train', config, '--work-dir', 'full') == 1
    assert 'full/epoch_1.pth cannot be written: No space left on device' in one_sentence(capsys)
    assert not list((tmp_path / 'full').glob('.*'))


def test_options_that_do_not_fit_are_one_sentence(config, run_tool, capsys):
    assert run_tool('train', config, '--auto-scale-lr') == 1
    assert 'base_batch_size' in one_sentence(capsys)
    if not torch.cuda.is_available():
        assert run_tool('train', config, '--amp') == 1
        assert '--amp needs an accelerator' in one_sentence(capsys)
        assert run_tool('train', config, '--cuda-graph') == 1
        assert '--cuda-graph needs a GPU' in one_sentence(capsys)


def test_missing_library_is_named(config, run_tool, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    assert run_tool('train', config, '--cfg-options', 'default_scope=mmdet') == 1
    assert 'needs the package mmdet,' in one_sentence(capsys)
