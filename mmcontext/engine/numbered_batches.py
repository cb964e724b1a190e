"""Batches that know their number in the run, so that loading can begin at any of them."""
from itertools import islice
from typing import Any, Iterator, List, Optional, Sequence

import torch
from mmengine.dist import get_rank
from torch.utils.data import BatchSampler, DataLoader

from .random_states import seeded


class NumberedBatch(list):
    """The indices of a batch.

    Args:
        indices (sequence): as the sampler gives them.
        entropy (sequence of int): what the random numbers of its augmentation come from.
    """

    def __init__(self, indices: Sequence, entropy: Sequence[int]) -> None:
        super().__init__(indices)
        self.entropy = entropy


class SeededItems:
    """``__getitems__`` of a dataset: every numbered batch begins with random numbers of its own.

    So it does not matter to a sample which worker loads it, what that worker has loaded before,
    and whether there are workers at all.

    Args:
        dataset (Dataset): map-style.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.items = getattr(dataset, '__getitems__', None)

    def __call__(self, batch: Sequence) -> List:
        if not isinstance(batch, NumberedBatch):
            return self._load(batch)
        with seeded(batch.entropy):
            return self._load(batch)

    def _load(self, batch: Sequence) -> List:
        return self.items(batch) if self.items else [self.dataset[index] for index in batch]


class NumberedBatches:
    """The batch sampler of a DataLoader, wrapped around the one it has.

    Batch ``n`` of process ``rank`` is loaded with random numbers from (``seed``, ``rank``,
    ``n``). What comes before the first batch wanted is drawn from the sampler, and not loaded.

    Args:
        batch_sampler (BatchSampler): what forms the batches.
        endless (bool): Whether one pass goes on through all epochs, as a loop by iterations
            needs it; such a pass is empty before :meth:`start`. Defaults to False.
    """

    def __init__(self, batch_sampler: BatchSampler, endless: bool = False) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.batch_size = getattr(batch_sampler, 'batch_size', None)
        self.drop_last = getattr(batch_sampler, 'drop_last', False)
        self.endless = endless
        self._seed: Optional[int] = None
        self._first = self._skip = 0

    def start(self, seed: int, first: int, skip: int = 0) -> None:
        """Say where the next pass begins.

        Args:
            seed (int): seed of the run.
            first (int): number in the run of the first batch of the sampler's next pass; 0 if
                endless.
            skip (int): batches of that pass to leave out. Defaults to 0.
        """
        self._seed, self._first, self._skip = seed, first, skip

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[NumberedBatch]:
        # (A DataLoader with workers asks twice for its first pass.)
        skip = self._skip
        if not self.endless:
            return self._numbered(self._pass(skip), self._first + skip)
        if self._seed is None:
            return iter(())
        return self._numbered(self._all_passes(skip), skip)

    def _numbered(self, batches: Iterator[Sequence], first: int) -> Iterator[NumberedBatch]:
        for number, batch in enumerate(batches, first):
            yield NumberedBatch(batch, (self._seed or 0, get_rank(), number))

    def _pass(self, skip: int = 0) -> Iterator[Sequence]:
        buckets = getattr(self.batch_sampler, '_aspect_ratio_buckets', None)
        if buckets is not None:
            # mmdet's sampler by aspect ratio keeps the rest of a pass that was broken off.
            self.batch_sampler._aspect_ratio_buckets = [[] for _ in buckets]
        yield from islice(self.batch_sampler, skip, None)

    def _all_passes(self, skip: int) -> Iterator[Sequence]:
        epoch = 0
        while True:
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            length = 0
            for batch in self._pass():
                length += 1
                if skip:
                    skip -= 1
                else:
                    yield batch
            if not length:
                raise ValueError(f'{type(self.sampler).__name__} gives no batch')
            whole, skip = divmod(skip, length)
            epoch += 1 + whole


def number_batches(loader: DataLoader, endless: bool = False) -> Optional[NumberedBatches]:
    """Number the batches of a DataLoader that nobody iterates over yet.

    Args:
        loader (DataLoader): changed in place.
        endless (bool): see :class:`NumberedBatches`. Defaults to False.

    Returns:
        NumberedBatches or None: None for a dataset without indices (iterable).
    """
    if loader.batch_sampler is None or not hasattr(loader.batch_sampler, 'sampler'):
        return None
    batches = NumberedBatches(loader.batch_sampler, endless)
    # DataLoader refuses the assignment, for the sake of iterators that are under way.
    vars(loader)['batch_sampler'] = batches
    loader.dataset.__getitems__ = SeededItems(loader.dataset)
    # A new iterator draws a number here, and no longer from the stream that dropout draws from.
    loader.generator = torch.Generator()
    return batches
