"""Base of the data sets of sequences."""
from typing import List, Optional, Sequence, Tuple

import torch
from mmpretrain.datasets import BaseDataset
from torch import Tensor

SPLITS = ('train', 'val', 'test')


class SequenceDataset(BaseDataset):
    """Base of the data sets whose samples are sequences read from local files.

    A sample reaches the pipeline with the keys ``img``, a float32 tensor [C, L] (the name is the
    one ``PackInputs`` and mmpretrain's classifiers expect), ``gt_label`` and ``sample_idx``.

    Args:
        data_root (str): Folder with the files; nothing is downloaded.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        pipeline (Sequence): Transforms. Defaults to ().
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.
    """

    def __init__(self,
                 data_root: str,
                 split: str = 'train',
                 pipeline: Sequence = (),
                 **kwargs) -> None:
        if split not in SPLITS:
            raise ValueError(f'split must be one of {", ".join(SPLITS)}, got {split!r}')
        self.split = split
        super().__init__(ann_file='', data_root=data_root, pipeline=pipeline, **kwargs)

    def load_sequence(self, info: dict) -> Tensor:
        """The sequence [C, L] of an entry of the data list."""
        raise NotImplementedError

    def get_data_info(self, idx: int) -> dict:
        """An entry of the data list with its sequence under ``img``."""
        info = super().get_data_info(idx)
        info['img'] = self.load_sequence(info)
        return info


def random_parts(size: int, fractions: Tuple[float, float], seed: int) -> List[Tensor]:
    """Shuffled indices of the training, validation and test part.

    Args:
        size (int): Number of samples.
        fractions (tuple): Fractions of the validation and the test part, each rounded down.
        seed (int): Seed of the shuffle.
    """
    held_out = [int(size * fraction) for fraction in fractions]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return list(torch.split(order, [size - sum(held_out), *held_out]))


def standardise(sequence: Tensor, mean: Optional[Tensor], std: Optional[Tensor]) -> Tensor:
    """Subtract the mean and divide by the standard deviation, each [C, 1]; None skips it."""
    return sequence if mean is None else (sequence - mean) / std
