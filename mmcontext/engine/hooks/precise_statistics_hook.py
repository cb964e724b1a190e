"""Statistics of batch norms over many batches with fixed weights."""
from copy import deepcopy
from itertools import islice
from typing import Iterable, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcontext.registry import HOOKS
from mmcontext.utils.dist import unwrapped_model


@torch.no_grad()
def update_bn_stats(model: nn.Module, batches: Iterable) -> int:
    """Replace running statistics by the average over batches and processes.

    Args:
        model (nn.Module): An mmengine model in training mode. Norms in eval mode are unchanged.
        batches (Iterable): Batches as taken by its ``train_step``.

    Returns:
        int: Number of batch norms with new statistics.

    Raises:
        ValueError: There is no batch.
    """
    norms = [m for m in model.modules()
             if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    sums = [(torch.zeros_like(n.running_mean), torch.zeros_like(n.running_var)) for n in norms]
    count = 0
    try:
        for norm in norms:
            # So that the running statistics are those of the last batch.
            norm.momentum = 1.
        for data in batches:
            # The training forward, so that a detector's heads see the regions they train on.
            data = model.data_preprocessor(data, True)
            model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss')
            count += 1
            for norm, (mean, var) in zip(norms, sums):
                mean += norm.running_mean
                var += norm.running_var
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
    if not count:
        raise ValueError('batches must hold at least one batch')
    for norm, (mean, var) in zip(norms, sums):
        for buffer, total in ((norm.running_mean, mean), (norm.running_var, var)):
            total /= count
            all_reduce(total, 'mean')
            buffer.copy_(total)
    return len(norms)


# mmpretrain has a hook of the second name, for classifiers trained by epochs.
@HOOKS.register_module(name=['PreciseStatisticsHook', 'PreciseBNHook'])
class PreciseStatisticsHook(Hook):
    """Recomputes the statistics of batch norms before every validation and at the end.

    From "Rethinking Batch in BatchNorm", https://arxiv.org/abs/2105.07576, as in detectron2: the
    statistics are averaged over ``num_iters`` training batches with the current weights. The
    batches come from a separate data loader, so that training continues where it was, and pass
    through the training forward, so that it works for detectors and segmentors as well.

    Args:
        num_iters (int): Number of batches each time, on each process. Defaults to 200.

    Raises:
        ValueError: ``num_iters`` is not positive.
    """

    # Before an EMA copies the buffers, and before the checkpoint.
    priority = 'HIGH'

    def __init__(self, num_iters: int = 200) -> None:
        if num_iters < 1:
            raise ValueError(f'num_iters must be at least 1, got {num_iters!r}')
        self.num_iters = num_iters
        self._loader = None

    def after_train_epoch(self, runner) -> None:
        """Run if due, in training by epochs."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            self._run_if_due(runner, loop.epoch + 1, loop.max_epochs)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """Run if due, in training by iterations."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            self._run_if_due(runner, loop.iter + 1, loop.max_iters)

    def _run_if_due(self, runner, done: int, total: int) -> None:
        loop = runner.train_loop
        if done != total and (done < loop.val_begin or done % loop.val_interval):
            return
        if self._loader is None:
            cfg = deepcopy(runner._train_dataloader)
            if isinstance(cfg, dict):
                cfg.update(persistent_workers=False)
                cfg = runner.build_dataloader(cfg, seed=runner.seed)
            self._loader = cfg
        model = unwrapped_model(runner)
        norms = update_bn_stats(model, islice(iter(self._loader), self.num_iters))
        runner.logger.info(f'new statistics of {norms} batch norms')
