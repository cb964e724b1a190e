"""Checkpoint hook that never leaves a run without a complete checkpoint."""
import os
import os.path as osp
from glob import escape, glob
from typing import Union

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmcontext.registry import HOOKS
from mmcontext.utils.errors import CheckpointError


@register_backend('mmcontext_atomic')
class AtomicLocalBackend(LocalBackend):
    """Local files that appear under their name only once they are complete."""

    def put(self, obj: bytes, filepath: Union[str, os.PathLike]) -> None:
        """Write bytes to a temporary file next to ``filepath``, flush it to disk, and rename."""
        folder, name = osp.split(osp.abspath(filepath))
        os.makedirs(folder, exist_ok=True)
        scratch = osp.join(folder, f'.{name}.part')
        try:
            with open(scratch, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, filepath)
        except OSError as error:
            if osp.lexists(scratch):
                os.remove(scratch)
            raise CheckpointError(
                f'checkpoint {filepath} cannot be written: {error.strerror}; those saved '
                'before it are untouched') from error


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe against being killed at any moment.

    A checkpoint is written to a temporary file and renamed when complete, and the one it replaces
    (``max_keep_ckpts``, ``save_best``) is removed only after that; mmengine removes it first, so
    that with ``max_keep_ckpts=1`` a kill during the write loses everything. A validation during
    which the run was killed, or that its checkpoint does not know of, is repeated when the run is
    resumed.

    Takes mmengine's arguments. Remote folders are left to their own backend.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        remote = self.out_dir is not None and '://' in str(self.out_dir)
        if self.backend_args is None and self.file_client_args is None and not remote:
            self.backend_args = dict(backend='mmcontext_atomic')

    def before_train(self, runner) -> None:
        """Prepare to save, and validate if the checkpoint was saved before its validation."""
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, AtomicLocalBackend):
            for left_over in glob(osp.join(escape(self.out_dir), '.*.pth.part')):
                os.remove(left_over)
        if runner._resume and osp.dirname(osp.abspath(runner._load_from)) == \
                osp.abspath(self.out_dir):
            # So that a better score is recorded in it, as if this process had saved it.
            self.last_ckpt = runner._load_from
        if self._validation_is_due(runner):
            runner.logger.info('Validating the resumed checkpoint.')
            runner.val_loop.run()

    def _validation_is_due(self, runner) -> bool:
        loop = runner.train_loop
        if runner.val_loop is None or \
                type(loop).run is not (
                    EpochBasedTrainLoop if self.by_epoch else IterBasedTrainLoop).run:
            return False
        done, last = (loop.epoch, loop.max_epochs) if self.by_epoch else (
            loop.iter, loop.max_iters)
        if done == 0 or runner.message_hub.get_info('last_validated_iter', -1) == loop.iter:
            return False
        return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)

    def after_val_epoch(self, runner, metrics) -> None:
        """Save the best checkpoint, and record for a resumed run that this validation is done."""
        runner.message_hub.update_info('last_validated_iter', runner.iter)
        super().after_val_epoch(runner, metrics)

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            # checkpoints saved by deepspeed are directories
            self.file_backend.rmtree(path)

    def _save_checkpoint_with_step(self, runner, step, meta):
        outdated = None
        if self.max_keep_ckpts > 0 and len(self.keep_ckpt_ids) == self.max_keep_ckpts \
                and self.keep_ckpt_ids[-1] != step:
            # Taken out of the queue, so that the parent class does not remove it first.
            outdated = self.keep_ckpt_ids.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if outdated is not None:
            self._remove(self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(outdated)))

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not self.save_best:
            return
        if len(self.key_indicators) == 1:
            replaced = {None: self.best_ckpt_path}
            # Hidden, so that the parent class does not remove it before the new one is written.
            self.best_ckpt_path = None
        else:
            replaced = dict(self.best_ckpt_path_dict)
            self.best_ckpt_path_dict = dict.fromkeys(self.key_indicators)
        super()._save_best_checkpoint(runner, metrics)
        for key, path in replaced.items():
            current = self.best_ckpt_path if key is None else self.best_ckpt_path_dict[key]
            if current is None:
                if key is None:
                    self.best_ckpt_path = path
                else:
                    self.best_ckpt_path_dict[key] = path
            elif path is not None and path != current:
                self._remove(path)
                runner.logger.info(f'The previous best checkpoint {path} is removed')
