"""mmengine's training loops, able to start at any batch."""
from itertools import repeat
from typing import Any, Iterator

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop

from mmcontext.registry import LOOPS

from .hooks import ExactResumeHook
from .numbered_batches import number_batches


def _add_hook(runner) -> None:
    if not any(isinstance(hook, ExactResumeHook) for hook in runner.hooks):
        runner.register_hook(ExactResumeHook())


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop by epochs, in which a killed run resumes bit for bit, also within an epoch.

    Batches are augmented with random numbers derived from the seed, the process and the number of
    the batch, and an :class:`~mmcontext.engine.hooks.ExactResumeHook` is added to the run's hooks.
    ``tools/train.py`` uses this loop instead of mmengine's.

    Attributes:
        batches (NumberedBatches or None): None for an iterable dataset, which starts over.
        first_batch (int): The batch with which the next epoch begins.
    """

    def __init__(self, runner, dataloader: Any, *args, **kwargs) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self.batches = number_batches(self.dataloader)
        self.first_batch = 0
        _add_hook(runner)

    def run_epoch(self) -> None:
        """Iterate over one epoch, or over the rest of one."""
        first, self.first_batch = self.first_batch, 0
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if self.batches is not None:
            self.batches.start(self.runner.seed, self._iter - first, first)
        for idx, data_batch in enumerate(self.dataloader, first):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class _DueBatches:
    """Batches of a loop by iterations, starting with the one that is due.

    mmengine's ``run`` fetches and discards every batch that was already trained on; that of the
    fork onedl-mmengine passes the number of batches to skip, or skips none. Neither costs
    anything here.
    """

    def __init__(self, loop: 'ResumableIterLoop') -> None:
        self._loop, self._batches = loop, None

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            asked = 0 if hasattr(self._loop, 'fast_forward_on_resume') else self._loop.iter
            self._batches = self._from(asked)
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """Nothing is left to skip."""

    def _from(self, asked: int) -> Iterator:
        loop, due = self._loop, self._loop.iter
        yield from repeat(None, asked)
        loop.batches.start(loop.runner.seed, 0, due)
        yield from loop.dataloader


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """mmengine's loop by iterations, in which a killed run resumes bit for bit.

    See :class:`ResumableEpochLoop`. mmengine reloads everything that was already trained on; this
    begins with the batch that is due. Loading does not pause between the epochs of a finite
    sampler.
    """

    def __init__(self, runner, dataloader: Any, *args, **kwargs) -> None:
        # mmengine's constructor starts loading, and would advance the sampler.
        BaseLoop.__init__(self, runner, dataloader)
        self.batches = number_batches(self.dataloader, endless=True)
        super().__init__(runner, self.dataloader, *args, **kwargs)
        if self.batches is not None:
            self.dataloader_iterator = _DueBatches(self)
        _add_hook(runner)
