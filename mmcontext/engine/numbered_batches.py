"""Batches numbered over the whole run, so that loading can begin at any of them."""
from itertools import islice
from typing import Any, Iterator, List, Optional, Sequence

import torch
from mmengine.dist import get_rank
from torch.utils.data import BatchSampler, DataLoader

from .random_states import seeded


class NumberedBatch(list):
    """The indices of a batch.

    Args:
        indices (sequence): as given by the sampler.
        entropy (sequence of int): seeds the random numbers of its augmentation.
    """

    def __init__(self, indices: Sequence, entropy: Sequence[int]) -> None:
        super().__init__(indices)
        self.entropy = entropy


class SeededItems:
    """``__getitems__`` of a dataset that seeds the random numbers anew for every numbered batch.

    A sample therefore does not depend on which worker loads it, on what that worker has loaded
    before, or on whether there are workers at all.

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
    """A batch sampler for a DataLoader, wrapped around its own.

    Batch ``n`` of process ``rank`` is loaded with random numbers from (``seed``, ``rank``,
    ``n``). Batches before the first one due are drawn from the sampler, but not loaded.

    Args:
        batch_sampler (BatchSampler): forms the batches.
        endless (bool): Whether one pass continues through all epochs, as needed by a loop by
            iterations; such a pass is empty before :meth:`start`. Defaults to False.
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
        """Set where the next pass begins.

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
            # mmdet's sampler by aspect ratio keeps the remainder of a pass that was interrupted.
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
    """Number the batches of a DataLoader that is not being iterated over yet.

    Args:
        loader (DataLoader): changed in place.
        endless (bool): see :class:`NumberedBatches`. Defaults to False.

    Returns:
        NumberedBatches or None: None for a dataset without indices (iterable).
    """
    if loader.batch_sampler is None or not hasattr(loader.batch_sampler, 'sampler'):
        return None
    batches = NumberedBatches(loader.batch_sampler, endless)
    # DataLoader forbids the assignment because of iterators that may be active.
    vars(loader)['batch_sampler'] = batches
    loader.dataset.__getitems__ = SeededItems(loader.dataset)
    # A new iterator draws its seed from this generator, not from the one that dropout uses.
    loader.generator = torch.Generator()
    return batches
