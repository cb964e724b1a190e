"""Long-range arena (arXiv 2011.04006): ListOps, Text and Pathfinder from local files.

Its Image task is CIFAR-10 in greyscale, which mmpretrain reads.
"""
import csv
import os.path as osp
from collections import Counter
from contextlib import contextmanager
from glob import glob
from typing import Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from mmpretrain.datasets import BaseDataset
from torch import Tensor

from mmcontext.datasets.sequence_dataset import SPLITS, SequenceDataset, random_parts
from mmcontext.registry import DATASETS
from mmcontext.utils.errors import DataError

PAD, UNKNOWN, END = 0, 1, 2
_SPECIALS = 3


def build_vocabulary(samples: Iterable[Sequence[str]], min_count: int = 1) -> Dict[str, int]:
    """Ids of tokens, the most frequent first (ties in alphabetical order).

    Args:
        samples: Tokens of each training sample.
        min_count (int): Rarer tokens get no id. Defaults to 1.

    Returns:
        dict: Token to id; 0, 1 and 2 stay free for padding, unknown and end.
    """
    counts = Counter()
    for sample in samples:
        counts.update(sample)
    tokens = sorted((t for t, n in counts.items() if n >= min_count),
                    key=lambda t: (-counts[t], t))
    return {token: i + _SPECIALS for i, token in enumerate(tokens)}


@contextmanager
def _reading(path: str, expected: str) -> Iterator[None]:
    """Context that turns errors of parsing a file into a DataError that names it."""
    try:
        yield
    except (ValueError, KeyError, AttributeError, csv.Error) as error:
        raise DataError(f'{path} cannot be read: expected {expected} '
                        f'({type(error).__name__}: {error})') from error


def _label(text: str, count: int) -> int:
    label = int(text)
    if not 0 <= label < count:
        raise ValueError(f'label {label} is not in [0, {count})')
    return label


class TokenDataset(SequenceDataset):
    """Token sequences as one float channel of ids, padded on the left.

    Args:
        max_length (int): Length of every sequence; longer ones are truncated. The last
            position is the end token.
        min_count (int): Tokens that are rarer in training are unknown. Defaults to 1.
        **kwargs: See :class:`SequenceDataset`.
    """

    def __init__(self, *args, max_length: int, min_count: int = 1, **kwargs) -> None:
        if max_length < 2:
            raise ValueError(f'max_length must be at least 2, got {max_length}')
        self.max_length = max_length
        self.min_count = min_count
        super().__init__(*args, **kwargs)

    def read(self, split: str) -> Iterator[Tuple[Sequence[str], int]]:
        """Tokens and label of each sample of a split."""
        raise NotImplementedError

    def load_data_list(self) -> List[dict]:
        """Token ids and labels; the vocabulary is that of the training split."""
        keep = self.max_length - 1
        vocabulary = build_vocabulary((tokens[:keep] for tokens, _ in self.read('train')),
                                      self.min_count)
        dtype = np.uint8 if len(vocabulary) + _SPECIALS <= 256 else np.int32
        return [
            dict(tokens=np.array([vocabulary.get(t, UNKNOWN) for t in tokens[:keep]] + [END],
                                 dtype=dtype), gt_label=label)
            for tokens, label in self.read(self.split)
        ]

    def load_sequence(self, info: dict) -> Tensor:
        """[1, max_length]."""
        tokens = torch.from_numpy(info.pop('tokens').astype(np.float32))
        sequence = torch.full((1, self.max_length), float(PAD))
        sequence[0, self.max_length - len(tokens):] = tokens
        return sequence


@DATASETS.register_module()
class LRAListOps(TokenDataset):
    """Nested list operations with results 0 to 9.

    Expects ``basic_train.tsv``, ``basic_val.tsv`` and ``basic_test.tsv`` with columns Source
    and Target, as released. Parentheses are dropped.

    Args:
        max_length (int): Defaults to 2048.
        Others: See :class:`TokenDataset`.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, *args, max_length: int = 2048, **kwargs) -> None:
        super().__init__(*args, max_length=max_length, **kwargs)

    def read(self, split: str) -> Iterator[Tuple[Sequence[str], int]]:
        """Tokens and result of each expression of a split."""
        path = osp.join(self.data_root, f'basic_{split}.tsv')
        if not osp.isfile(path):
            raise DataError(f'no file {path}; unpack listops-1000 of lra_release there or set '
                            'data_root')
        with open(path, newline='', encoding='utf-8') as file, \
                _reading(path, 'tab-separated columns Source and Target (0 to 9)'):
            for row in csv.DictReader(file, delimiter='\t'):
                # The arena's tokenizer keeps letters and digits only, hence X for ].
                source = row['Source'].translate({ord(']'): 'X', ord('('): None, ord(')'): None})
                yield source.split(), _label(row['Target'] or '', 10)


@DATASETS.register_module()
class LRAText(TokenDataset):
    """Sentiment of IMDB reviews, character by character.

    Expects ``train/pos/*.txt``, ``train/neg``, ``test/pos`` and ``test/neg`` as in the aclImdb
    archive. There is no validation part: 'val' is the test part, as in the arena.

    Args:
        max_length (int): Defaults to 4096.
        min_count (int): Defaults to 15.
        Others: See :class:`TokenDataset`.
    """

    METAINFO = dict(classes=('neg', 'pos'))

    def __init__(self, *args, max_length: int = 4096, min_count: int = 15, **kwargs) -> None:
        super().__init__(*args, max_length=max_length, min_count=min_count, **kwargs)

    def read(self, split: str) -> Iterator[Tuple[Sequence[str], int]]:
        """Characters and label of each review of a split."""
        folder = osp.join(self.data_root, 'train' if split == 'train' else 'test')
        for label, name in enumerate(self.METAINFO['classes']):
            paths = sorted(glob(osp.join(folder, name, '*.txt')))
            if not paths:
                raise DataError(f'no reviews in {folder}/{name}; unpack aclImdb there or set '
                                'data_root')
            for path in paths:
                with open(path, encoding='utf-8') as file, _reading(path, 'UTF-8 text'):
                    text = file.read()
                yield text, label


@DATASETS.register_module()
class LRAPathfinder(BaseDataset):
    """Whether two dots are connected by a path, in greyscale images.

    Expects the released layout below ``data_root``, e.g. that of
    ``pathfinder32/curv_contour_length_14`` (hard): ``metadata/*.npy``, text files whose lines
    contain folder, file, a number and the label, and ``imgs``. Split 80 / 10 / 10 with a fixed
    shuffle. Samples have ``img_path`` and ``gt_label`` for ``LoadImageFromFile``.

    Args:
        data_root (str): Folder with ``metadata`` and ``imgs``.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        seed (int): Seed of the split. Defaults to 42.
        pipeline (Sequence): Transforms. Defaults to ().
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.
    """

    METAINFO = dict(classes=('apart', 'joined'))

    def __init__(self, data_root: str, split: str = 'train', seed: int = 42,
                 pipeline: Sequence = (), **kwargs) -> None:
        if split not in SPLITS:
            raise ValueError(f'split must be one of {", ".join(SPLITS)}, got {split!r}')
        self.split = split
        self.seed = seed
        super().__init__(ann_file='', data_root=data_root, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Paths and labels of the split; empty files are left out."""
        # Sorted by number: 2.npy comes before 10.npy.
        lists = sorted(glob(osp.join(self.data_root, 'metadata', '*.npy')),
                       key=lambda path: (len(osp.basename(path)), path))
        if not lists:
            raise DataError(f'no lists in {self.data_root}/metadata; unpack a difficulty of '
                            'lra_release pathfinder32 there or set data_root')
        samples = []
        for name in lists:
            with open(name, encoding='utf-8') as file, \
                    _reading(name, 'lines of folder, file, a number and the label (0 or 1)'):
                for line in file:
                    folder, image, _, label = line.split()[:4]
                    path = osp.join(self.data_root, folder, image)
                    # One image of the release is an empty file.
                    if osp.getsize(path):
                        samples.append(dict(img_path=path, gt_label=_label(label, 2)))
        part = random_parts(len(samples), (.1, .1), self.seed)[SPLITS.index(self.split)]
        return [samples[i] for i in part.tolist()]
