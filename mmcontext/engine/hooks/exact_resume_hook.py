"""Checkpoints from which a killed run resumes bit for bit."""
import hashlib
from typing import Any, Dict, List, Optional

import torch
from mmengine.dist import (
    all_gather,
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
)
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from torch import Tensor

from mmcontext.registry import HOOKS
from mmcontext.utils.dist import unwrapped_model

from .. import random_states

KEY = 'resume_state'


def _buffers(runner) -> Dict[str, Tensor]:
    """The buffers that a checkpoint saves from the first process: of the model and its average."""
    models = [unwrapped_model(runner)]
    models += [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
    buffers = {}
    for index, model in enumerate(models):
        saved = model.state_dict()
        buffers.update((f'{index}.{name}', buffer) for name, buffer in model.named_buffers()
                       if name in saved)
    return buffers


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha1(data.tobytes()).hexdigest()


def _own_buffers(runner) -> Dict[str, Tensor]:
    """Copies of the buffers that differ from the first process's (BN without SyncBN)."""
    if get_world_size() == 1:
        return {}
    buffers = _buffers(runner)
    first = [{name: _digest(buffer) for name, buffer in buffers.items()}]
    mine = dict(first[0])
    broadcast_object_list(first)
    return {name: buffer.detach().cpu().clone() for name, buffer in buffers.items()
            if mine[name] != first[0].get(name)}


def _pending_gradients(runner) -> Dict[str, Tensor]:
    """Gradients that have been accumulated and not yet been used in a step."""
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapperDict) and wrapper.should_update():
        return {}
    return {name: parameter.grad for name, parameter in unwrapped_model(runner).named_parameters()
            if parameter.grad is not None}


def _gather_gradients(runner) -> List[Dict[str, Tensor]]:
    """Pending gradients of every process, one tensor at a time; complete only in the first."""
    mine = _pending_gradients(runner)
    names = all_gather_object(list(mine))
    gathered: List[Dict[str, Tensor]] = [{} for _ in names]
    for name, parameter in unwrapped_model(runner).named_parameters():
        holders = [rank for rank, known in enumerate(names) if name in known]
        if not holders:
            continue
        gradient = mine.get(name, parameter.new_zeros(parameter.shape))
        for rank, tensor in enumerate(all_gather(gradient.contiguous())):
            if rank in holders and get_rank() == 0:
                gathered[rank][name] = tensor.cpu().clone()
    return gathered


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Adds to checkpoints the state that mmengine leaves out.

    Before a CheckpointHook saves, this collects from every process the random states of Python,
    numpy, torch and the accelerator, the buffers that differ from the first process's, and the
    gradients that have been accumulated but not used yet; also the position in the epoch and the
    sampler's seed. All of this is in the checkpoint's ``resume_state``, as tensors, numbers and
    strings, and is restored when training resumes. Validation leaves the random states as it
    found them, so it makes no difference whether a resumed run repeats it.

    ``mmcontext.ResumableEpochLoop`` and ``mmcontext.ResumableIterLoop`` number the batches and
    can begin at any of them; they add this hook by themselves. With other loops it restores
    everything but the order of batches and their augmentation in workers.

    A checkpoint without this state, or from another number of processes, resumes as in mmengine,
    and the log says so.

    Args:
        gradients (bool): Whether accumulated gradients are saved, one set per process. Each takes
            as much space as the weights; without them a run that resumes in the middle of an
            accumulation loses them. Defaults to True.
    """

    # Right before CheckpointHook (VERY_LOW), after everything that draws random numbers.
    priority = 89

    def __init__(self, gradients: bool = True) -> None:
        self.gradients = gradients
        self._loaded: Optional[Dict[str, Any]] = None
        self._captured: Optional[Dict[str, Any]] = None
        self._position = (-1, -1)
        self._before_val: Optional[Dict[str, Any]] = None
        self._training = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Hold the state until training begins."""
        if runner._resume:
            self._loaded = checkpoint.get(KEY, {})

    def before_train(self, runner) -> None:
        """Restore the state of the checkpoint."""
        self._training = True
        state, self._loaded = self._loaded, None
        if state is None:
            return
        self._seed_sampler(runner, state.get('sampler_seed'))
        problem = self._problem(runner, state)
        if problem:
            runner.logger.warning(
                f'{problem}: training goes on with other augmentation and dropout than the '
                'interrupted run would have had.')
            return
        # The checkpoint is saved again if the validation that is due finds it to be the best.
        self._captured, self._position = state, (runner.epoch, runner.iter)
        loop = runner.train_loop
        if getattr(loop, 'batches', None) is not None and hasattr(loop, 'first_batch'):
            loop.first_batch = state['batch']
        mine = state['processes'][get_rank()]
        buffers = _buffers(runner)
        with torch.no_grad():
            for name, buffer in mine['buffers'].items():
                buffers[name].copy_(buffer)
        for name, parameter in unwrapped_model(runner).named_parameters():
            if name in mine['gradients']:
                parameter.grad = mine['gradients'][name].to(parameter)
        random_states.restore(mine['random'])
        runner.logger.info('Random states are those of the checkpoint.')

    def _problem(self, runner, state: Dict[str, Any]) -> Optional[str]:
        if not state:
            return 'The checkpoint holds no random states'
        processes = len(state['processes'])
        if processes != get_world_size():
            return f'The checkpoint is of {processes} processes, and now there are ' \
                f'{get_world_size()}'
        if state['batches'] != len(runner.train_dataloader):
            return f'An epoch had {state["batches"]} batches, and now it has ' \
                f'{len(runner.train_dataloader)}'
        return None

    @staticmethod
    def _sampler(runner) -> Any:
        loader = runner.train_dataloader
        return getattr(loader.batch_sampler, 'sampler', loader.sampler)

    def _seed_sampler(self, runner, seed: Optional[int]) -> None:
        # Without a seed in the config every start draws a new one, and the sampler was built
        # before the checkpoint was read.
        if seed is not None and isinstance(getattr(self._sampler(runner), 'seed', None), int):
            self._sampler(runner).seed = seed

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Collect the state if a checkpoint of this iteration follows."""
        self._captured = None
        if any(not hook.by_epoch and (
                self.every_n_train_iters(runner, hook.interval, hook.save_begin)
                or (hook.save_last and self.is_last_train_iter(runner)))
               for hook in self._checkpoint_hooks(runner)):
            self._capture(runner, (runner.epoch, runner.iter + 1), batch_idx + 1)

    def after_train_epoch(self, runner) -> None:
        """Collect the state if a checkpoint of this epoch follows."""
        if any(hook.by_epoch and (
                self.every_n_epochs(runner, hook.interval, hook.save_begin)
                or (hook.save_last and self.is_last_train_epoch(runner)))
               for hook in self._checkpoint_hooks(runner)):
            self._capture(runner, (runner.epoch + 1, runner.iter), 0)

    def before_val(self, runner) -> None:
        """Collect the state for the best checkpoint, and note the random states."""
        if not self._training:
            return
        position = (runner.epoch, runner.iter)
        if (self._captured is None or self._position != position) and any(
                hook.save_best for hook in self._checkpoint_hooks(runner)):
            self._capture(runner, position, 0)
        self._before_val = random_states.capture()

    def after_val(self, runner) -> None:
        """Restore the random states from before validation."""
        if self._before_val is not None:
            random_states.restore(self._before_val)
            self._before_val = None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the state, if it belongs to this checkpoint."""
        meta = checkpoint['meta']
        if self._captured is not None and self._position == (meta['epoch'], meta['iter']):
            checkpoint[KEY] = self._captured

    @staticmethod
    def _checkpoint_hooks(runner) -> List[CheckpointHook]:
        return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]

    def _capture(self, runner, position: tuple, batch: int) -> None:
        processes = all_gather_object(
            dict(random=random_states.capture(), buffers=_own_buffers(runner)))
        gradients = _gather_gradients(runner) if self.gradients else [{} for _ in processes]
        for process, pending in zip(processes, gradients):
            process['gradients'] = pending
        seed = getattr(self._sampler(runner), 'seed', None)
        self._position = position
        self._captured = dict(
            processes=processes, batch=batch, batches=len(runner.train_dataloader),
            sampler_seed=seed if isinstance(seed, int) else None)
