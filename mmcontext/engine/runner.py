"""The runner of tools/train.py and tools/test.py."""
from typing import Dict, NamedTuple, Optional, Union

import torch.nn as nn
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import DefaultScope
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmcontext.registry import RUNNERS
from mmcontext.utils.checkpoint import find_resumable_checkpoint
from mmcontext.utils.data import check_dataset, explain
from mmcontext.utils.dist import init_cpu_process_group, on_cpu
from mmcontext.utils.errors import CheckpointError

from .loops import ResumableEpochLoop, ResumableIterLoop

_RESUMABLE = {
    kind: resumable
    for loop, resumable in ((EpochBasedTrainLoop, ResumableEpochLoop),
                            (IterBasedTrainLoop, ResumableIterLoop))
    for kind in (loop, loop.__name__, f'mmengine.{loop.__name__}')
}
_CHECKPOINT_HOOKS = ('CheckpointHook', 'mmengine.CheckpointHook')


@RUNNERS.register_module()
class ContextRunner(Runner):
    """mmengine's Runner with eight additions.

    The configs of this package name it (``runner_type``), so that every program that runs them
    has the additions; the tools use it for other configs too.

    - Without an accelerator several processes train over gloo; mmengine alone would ask for
      CUDA devices.
    - ``resume=True`` takes the newest checkpoint that can be loaded, even if the last one is
      truncated.
    - A resumed run continues bit for bit as if it had not stopped (``exact_resume=False`` in the
      config: as in mmengine). See :class:`~mmcontext.engine.hooks.ExactResumeHook`.
    - Training resumes only from a checkpoint of this model and optimiser, and only a checkpoint
      with all weights is tested (``CheckpointError``); mmengine alone continues with whatever
      matches.
    - A missing or empty data folder is reported in one sentence (``DataError``).
    - A run that is killed while it saves keeps its last complete checkpoint
      (:class:`~mmcontext.engine.hooks.AtomicCheckpointHook`).
    - A detector whose heads do not match the classes of its data is stopped before the first
      iteration (:class:`~mmcontext.engine.hooks.ClassCountHook`).
    - In mmpretrain's scope dataloaders have the defaults of mmpretrain's own tools: pinned
      memory, persistent workers, ``default_collate``.
    """

    _testing = False

    def setup_env(self, env_cfg: Dict) -> None:
        """Set up processes; over gloo if there is no accelerator."""
        if on_cpu() and self.distributed and not is_distributed():
            timeout = env_cfg.get('dist_cfg', {}).get('timeout') or 1800
            init_cpu_process_group(self.launcher, timeout)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: Optional[Dict], model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; on CPU without device ids and SyncBN."""
        if not (on_cpu() and self.distributed):
            return super().wrap_model(model_wrapper_cfg, model)
        self.logger.info(
            f'No accelerator found: running {self.world_size} CPU processes over gloo, '
            'SyncBN as BN.')
        model = revert_sync_batchnorm(model)
        self.cfg.pop('sync_bn', None)
        if model_wrapper_cfg is None:
            model_wrapper_cfg = dict(
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False))
        return super().wrap_model({**model_wrapper_cfg, 'device_ids': None}, model)

    def build_train_loop(self, loop: Union[BaseLoop, Dict]) -> BaseLoop:
        """Build the training loop; mmengine's two are replaced by their resumable versions."""
        if isinstance(loop, dict) and self.cfg.get('exact_resume', True):
            loop = dict(loop)
            kind = loop.pop('type', None)
            if kind is None:
                kind = EpochBasedTrainLoop if loop.pop('by_epoch') else IterBasedTrainLoop
            loop['type'] = _RESUMABLE.get(kind, kind)
        return super().build_train_loop(loop)

    def load_or_resume(self) -> None:
        """Load or resume, from the newest complete checkpoint if none is named."""
        if not self._has_loaded and self._resume and self._load_from is None:
            self._load_from = find_resumable_checkpoint(self.work_dir, self.logger)
            if self._load_from is None:
                self._resume = False
                self.logger.info(
                    f'No checkpoint to resume from in {self.work_dir}: training starts anew.')
        super().load_or_resume()

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume from a checkpoint of this config's training.

        Raises:
            CheckpointError: The checkpoint is from another model or optimiser, or contains only
                weights.
        """
        try:
            super().resume(filename, *args, **kwargs)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f'cannot resume from {filename}: it holds no training state of this config '
                f'({type(error).__name__}: {error}); to start from its weights alone, set '
                'load_from with --cfg-options and leave out --resume') from error
        loop = self.train_loop
        # (A checkpoint saved by iterations counts an epoch as soon as it has ended.)
        if isinstance(loop, EpochBasedTrainLoop) and not \
                loop.epoch <= loop.iter / len(loop.dataloader) <= loop.epoch + 1:
            self.logger.warning(
                f'{filename} was trained for {loop.iter} iterations in {loop.epoch} epochs, and an '
                f'epoch has {len(loop.dataloader)} now (another number of processes, batch size or '
                'data set): schedules that count iterations do not fit any more.')

    def test(self) -> Dict[str, float]:
        """Test, but only with all weights of the model."""
        self._testing = True
        return super().test()

    def load_checkpoint(self, filename: str, map_location='cpu', strict: bool = False,
                        **kwargs) -> dict:
        """Load weights; to resume or to test, only those of this model.

        Raises:
            CheckpointError: Training is resumed and keys or shapes differ, or a model is tested
                and weights are missing or have another shape.
        """
        if not (self._resume or self._testing):
            return super().load_checkpoint(filename, map_location, strict, **kwargs)
        compared = []

        def forgive(module: nn.Module, keys: NamedTuple) -> None:
            """Called with the keys that differ after all weights have been loaded."""
            compared.append(module)
            if self._resume:
                return
            # Weights used in training only may be missing, and there may be additional ones.
            keys.missing_keys[:] = [
                key for key in keys.missing_keys if not key.startswith('auxiliary_head.')]
            if keys.unexpected_keys:
                self.logger.warning(f'{filename} holds more than this model: '
                                    f'{", ".join(keys.unexpected_keys)}')
                keys.unexpected_keys.clear()

        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        handle = model.register_load_state_dict_post_hook(forgive)
        try:
            return super().load_checkpoint(filename, map_location, True, **kwargs)
        except RuntimeError as error:
            if not compared:
                raise
            differences = ' '.join(str(error).split('\n', 1)[-1].split())  # without its heading
            raise CheckpointError(f'checkpoint {filename} is of another model: '
                                  f'{differences[:300]}') from error
        finally:
            handle.remove()

    def register_default_hooks(self, hooks: Optional[Dict] = None) -> None:
        """Register the default hooks; checkpoints are written atomically."""
        hooks = dict(hooks or {})
        checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook'))
        if isinstance(checkpoint, dict) and checkpoint.get('type') in _CHECKPOINT_HOOKS:
            hooks['checkpoint'] = dict(checkpoint, type='mmcontext.AtomicCheckpointHook')
        super().register_default_hooks(hooks)

    def register_hooks(self, *args, **kwargs) -> None:
        """Register all hooks; in mmdet's scope, also the comparison of classes."""
        super().register_hooks(*args, **kwargs)
        if self.cfg.get('default_scope') == 'mmdet':
            self.register_hook(dict(type='mmcontext.ClassCountHook'))

    @staticmethod
    def build_dataloader(dataloader: Union[DataLoader, Dict], *args, **kwargs) -> DataLoader:
        """Build a dataloader and check that it has data."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        scope = DefaultScope.get_current_instance()
        if scope is not None and scope.scope_name == 'mmpretrain':
            dataloader = {
                'pin_memory': not on_cpu(),
                'persistent_workers': dataloader.get('num_workers', 0) > 0,
                'collate_fn': dict(type='default_collate'), **dataloader}
        try:
            built = Runner.build_dataloader(dataloader, *args, **kwargs)
        except Exception as error:
            problem = explain(dataloader['dataset'], error)
            if problem is None:
                raise
            raise problem from error
        check_dataset(built.dataset)
        return built


def make_runner(cfg: Config) -> Runner:
    """Build the runner of a config: its own ``runner_type``, else :class:`ContextRunner`."""
    return MMENGINE_RUNNERS.build(cfg) if 'runner_type' in cfg else ContextRunner.from_cfg(cfg)
