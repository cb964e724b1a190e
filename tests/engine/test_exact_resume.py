"""Runs that stop anywhere and resume end as if they had not stopped, bit for bit."""
import logging
import os
import pickle
import random
import socket
from itertools import count

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmcontext.engine.loops import ResumableEpochLoop, ResumableIterLoop
from mmcontext.engine.numbered_batches import NumberedBatch
from mmcontext.engine.runner import ContextRunner
from mmcontext.utils.dist import leave_process_group


@DATASETS.register_module()
class NoisyPoints(Dataset):
    """22 points, augmented with random numbers from all three sources."""
    loaded = 0

    def __len__(self):
        return 22

    def __getitem__(self, index):
        NoisyPoints.loaded += 1
        noise = random.random() + np.random.rand() + torch.rand(3)
        return dict(inputs=torch.tensor([1., 2., 3.]) * index / 10 + noise)


@MODELS.register_module()
class DropoutNet(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.3),
                                    nn.Linear(6, 1))

    def forward(self, inputs, mode='tensor'):
        x = torch.stack(list(inputs))
        if mode == 'predict':
            np.random.rand(), torch.rand(1), random.random()
            return list(self.layers(x))
        x = x * np.random.beta(0.8, 0.8) + x.flip(0) * random.random()
        return dict(loss=(self.layers(x) - x.sum(1, keepdim=True)).square().mean())


@METRICS.register_module()
class FirstOutput(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0]))

    def compute_metrics(self, results):
        return dict(acc=sum(results))


@HOOKS.register_module()
class StopAt(Hook):
    """Stops like Ctrl-C, so that the run can be resumed in this process."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


@HOOKS.register_module()
class StopInValidation(StopAt):
    """The same during the validation after an iteration."""

    def after_train_iter(self, runner, *args, **kwargs):
        pass

    def after_val_iter(self, runner, *args, **kwargs):
        if runner.iter == self.iteration:
            raise KeyboardInterrupt


EPOCHS = dict(train_cfg=dict(by_epoch=True, max_epochs=4),
              default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))
INSIDE_EPOCHS = dict(
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4),
    default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)))
ITERATIONS = dict(
    train_cfg=dict(by_epoch=False, max_iters=20, val_interval=4),
    train_dataloader=dict(sampler=dict(type='InfiniteSampler')),
    default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False)))
FINITE = dict(ITERATIONS, train_dataloader=dict(sampler=dict(type='DefaultSampler')))
# mmengine shares its message hub among runs with the same name.
RUNS = count()
WORKERS = dict(train_dataloader=dict(num_workers=2, persistent_workers=True))


def config(folder, *changes, **options):
    cfg = Config(dict(
        model=dict(type='DropoutNet'),
        train_dataloader=dict(
            batch_size=4, num_workers=0, dataset=dict(type='NoisyPoints'),
            sampler=dict(type='DefaultSampler', shuffle=True)),
        val_dataloader=dict(batch_size=4, num_workers=0, dataset=dict(type='NoisyPoints'),
                            sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=dict(type='FirstOutput'), val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01), accumulative_counts=4),
        param_scheduler=dict(type='ExponentialLR', gamma=0.9, by_epoch=False),
        custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)],
        env_cfg=dict(mp_cfg=dict(mp_start_method='fork')),
        default_scope='mmengine', randomness=dict(seed=3), work_dir=str(folder),
        experiment_name=f'{folder.parent.name}_{folder.name}_{next(RUNS)}'))
    for change in changes:
        cfg.merge_from_dict(change)
    cfg.merge_from_dict(options)
    return cfg


def last(folder):
    name = (folder / 'last_checkpoint').read_text()
    checkpoint = torch.load(name, weights_only=True)
    keys = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'resume_state')
    return {key: checkpoint[key] for key in keys if key in checkpoint}


def stop_and_resume(folder, stop, *changes, where='StopAt', **resumed):
    stopping = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True),
                                  dict(type=where, iteration=stop)])
    with pytest.raises(KeyboardInterrupt):
        ContextRunner.from_cfg(config(folder, *changes, stopping)).train()
    NoisyPoints.loaded = 0
    runner = ContextRunner.from_cfg(config(folder, *changes, resume=True, **resumed))
    runner.train()
    return runner


def assert_equal(a, b, path=''):
    """Nested containers are equal, tensors bit for bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
    if isinstance(a, (dict, list, tuple)):
        assert len(a) == len(b), path
        for key in (a if isinstance(a, dict) else range(len(a))):
            assert_equal(a[key], b[key], f'{path}.{key}')
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


# An epoch has 6 batches, with a step after every fourth.
@pytest.mark.parametrize('stop, changes', [
    (15, (EPOCHS, WORKERS)), (11, (INSIDE_EPOCHS, )), (7, (INSIDE_EPOCHS, WORKERS)),
    (11, (ITERATIONS, WORKERS)), (19, (ITERATIONS, )), (17, (FINITE, WORKERS)), (8, (FINITE, ))])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop, changes):
    ContextRunner.from_cfg(config(tmp_path / 'whole', *changes)).train()
    stop_and_resume(tmp_path / 'stopped', stop, *changes)
    whole = last(tmp_path / 'whole')
    assert set(whole) == {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers',
                          'resume_state'}
    assert_equal(last(tmp_path / 'stopped'), whole)


# Checkpoints are saved before the validation that is due at the same time.
@pytest.mark.parametrize('stop, changes', [(12, EPOCHS), (24, EPOCHS), (12, ITERATIONS),
                                           (20, ITERATIONS)])
def test_a_validation_that_was_cut_short_is_made_up_for(tmp_path, stop, changes):
    best = dict(default_hooks=dict(checkpoint=dict(
        type='mmcontext.AtomicCheckpointHook', save_best='acc', rule='less')))
    whole = ContextRunner.from_cfg(config(tmp_path / 'whole', changes, best))
    whole.train()
    stopped = stop_and_resume(tmp_path / 'stopped', stop, changes, best, where='StopInValidation')
    found = []
    for name, runner in (('whole', whole), ('stopped', stopped)):
        saved = torch.load((tmp_path / name / 'last_checkpoint').read_text(), weights_only=True)
        found.append((sorted(path.name for path in (tmp_path / name).glob('*.pth')),
                      runner.message_hub.get_scalar('val/acc').data[0].tolist(),
                      saved['message_hub']['runtime_info']['best_score']))
    assert found[0] == found[1]
    assert_equal(last(tmp_path / 'stopped'), last(tmp_path / 'whole'))


def test_workers_make_no_difference_and_nothing_is_loaded_again(tmp_path):
    ContextRunner.from_cfg(config(tmp_path / 'whole', ITERATIONS, WORKERS)).train()
    runner = stop_and_resume(tmp_path / 'stopped', 17, ITERATIONS)
    assert_equal(last(tmp_path / 'stopped'), last(tmp_path / 'whole'))
    assert runner.iter == 20
    # From the checkpoint at 15: five batches of four, and two validations.
    assert NoisyPoints.loaded == 5 * 4 + 2 * 22


def test_an_unseeded_run_keeps_its_seed(tmp_path):
    cfg = config(tmp_path / 'whole', EPOCHS, randomness=dict(seed=None))
    ContextRunner.from_cfg(cfg).train()
    whole = last(tmp_path / 'whole')
    resumed = config(tmp_path / 'resumed', EPOCHS, randomness=dict(seed=None), resume=True,
                     load_from=str(tmp_path / 'whole/epoch_2.pth'))
    ContextRunner.from_cfg(resumed).train()
    assert_equal(last(tmp_path / 'resumed'), whole)


def warnings_of(runner, caplog):
    # mmengine's loggers call only their own handlers.
    runner.logger.addHandler(caplog.handler)
    runner.train()
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_checkpoint_without_the_state_resumes_and_says_so(tmp_path, caplog):
    off = config(tmp_path / 'off', ITERATIONS, exact_resume=False)
    runner = ContextRunner.from_cfg(off)
    runner.train()
    assert not isinstance(runner.train_loop, ResumableIterLoop)
    assert 'resume_state' not in last(tmp_path / 'off')
    runner = ContextRunner.from_cfg(config(
        tmp_path / 'on', ITERATIONS, resume=True, load_from=str(tmp_path / 'off/iter_9.pth')))
    assert any(message.startswith('The checkpoint holds no random states: ')
               for message in warnings_of(runner, caplog))
    assert runner.iter == 20
    assert 'resume_state' in last(tmp_path / 'on')


def test_another_epoch_length_resumes_and_says_so(tmp_path, caplog):
    ContextRunner.from_cfg(config(tmp_path / 'a', EPOCHS)).train()
    runner = ContextRunner.from_cfg(config(
        tmp_path / 'b', EPOCHS, resume=True, load_from=str(tmp_path / 'a/epoch_2.pth'),
        train_dataloader=dict(batch_size=6),
        # (mmengine counts accumulated gradients only up to the iterations planned at first.)
        optim_wrapper=dict(accumulative_counts=1)))
    assert any(message.startswith('An epoch had 6 batches, and now it has 4: ')
               for message in warnings_of(runner, caplog))


def test_mmengines_own_runner(tmp_path):
    """It accepts the loop by name, and without the loop it reads checkpoints with the state."""
    loop = dict(train_cfg=dict(type='mmcontext.ResumableEpochLoop', max_epochs=4))
    hooks = dict(default_hooks=EPOCHS['default_hooks'])
    for name, changes in (('whole', {}), ('resumed', dict(
            resume=True, load_from=str(tmp_path / 'whole/epoch_3.pth')))):
        runner = Runner.from_cfg(config(tmp_path / name, loop, hooks, **changes))
        runner.train()
        assert isinstance(runner.train_loop, ResumableEpochLoop)
    assert_equal(last(tmp_path / 'resumed'), last(tmp_path / 'whole'))
    runner = Runner.from_cfg(config(
        tmp_path / 'stock', EPOCHS, resume=True, load_from=str(tmp_path / 'whole/epoch_3.pth')))
    runner.train()
    assert runner.epoch == 4 and 'resume_state' not in last(tmp_path / 'stock')


def test_the_state_of_best_checkpoints_and_of_pending_gradients(tmp_path):
    hooks = dict(default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', interval=4, save_best='acc', rule='less')))
    ContextRunner.from_cfg(config(tmp_path / 'run', EPOCHS, hooks)).train()
    best, = (tmp_path / 'run').glob('best_*.pth')
    checkpoint = torch.load(best, weights_only=True)
    process, = checkpoint['resume_state']['processes']
    # 6 and 18 iterations are not divisible by 4, and are not the last, which makes a step too.
    pending = checkpoint['meta']['iter'] in (6, 18)
    names = [name for name, _ in DropoutNet().named_parameters()]
    assert list(process['gradients']) == (names if pending else [])
    assert all(gradient.any() for gradient in process['gradients'].values())


def test_a_numbered_batch_survives_the_way_to_a_worker():
    batch = pickle.loads(pickle.dumps(NumberedBatch([4, 2], (1, 0, 7))))
    assert batch == [4, 2] and batch.entropy == (1, 0, 7)


def _two_processes(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=(folder / 'port').read_text())
    for changes, stop in ((EPOCHS, 8), (ITERATIONS, 8)):
        changes = (changes, dict(launcher='pytorch'))
        name = 'epochs' if changes[0] is EPOCHS else 'iterations'
        ContextRunner.from_cfg(config(folder / f'{name}_whole', *changes)).train()
        stop_and_resume(folder / f'{name}_stopped', stop, *changes)
    leave_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_two_processes_end_with_the_same_bits(tmp_path):
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        (tmp_path / 'port').write_text(str(sock.getsockname()[1]))
    torch.multiprocessing.spawn(_two_processes, (tmp_path, ), nprocs=2)
    for name in ('epochs', 'iterations'):
        whole = last(tmp_path / f'{name}_whole')
        first, second = whole['resume_state']['processes']
        # Without SyncBN the second process has its own statistics.
        assert '0.layers.1.running_mean' in second['buffers'] and not first['buffers']
        assert_equal(last(tmp_path / f'{name}_stopped'), whole)
