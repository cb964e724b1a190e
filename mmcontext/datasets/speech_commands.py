"""Speech Commands, ten words of one second, from local files."""
import os.path as osp
import wave
from glob import glob
from typing import List

import numpy as np
import torch
from torch import Tensor

from mmcontext.datasets.sequence_dataset import SPLITS, SequenceDataset, random_parts, standardise
from mmcontext.datasets.sequence_transforms import mfcc
from mmcontext.registry import DATASETS
from mmcontext.utils.errors import DataError

WORDS = ('yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go')
SAMPLE_RATE = 16000


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f'{path} is no readable WAV file: {str(error) or "it is too short"}')


def read_wave(path: str) -> Tensor:
    """16-bit mono PCM file as float32 [samples] in [-1, 1).

    Raises:
        DataError: The file has another format or is truncated.
    """
    try:
        with wave.open(path, 'rb') as file:
            kind = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            frames = file.getnframes()
            content = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        raise _unreadable(path, error) from error
    if kind != (1, 2, SAMPLE_RATE):
        raise DataError(f'{path} must be mono 16-bit {SAMPLE_RATE} Hz, got {kind[0]} '
                        f'channels of {8 * kind[1]} bits at {kind[2]} Hz')
    if len(content) != 2 * frames:
        raise DataError(f'{path} is cut short: {len(content) // 2} of {frames} samples')
    samples = np.frombuffer(content, dtype='<i2')
    return torch.from_numpy(samples.astype(np.float32)) / 2**15


@DATASETS.register_module()
class SpeechCommands(SequenceDataset):
    """The ten-word subset of Speech Commands v0.02.

    Expects ``data_root/yes/*.wav`` and so on, as in the archive. Recordings that are not
    exactly one second long are left out. Each word is split 70 / 15 / 15 with a fixed shuffle.
    Sequences are standardised per channel with statistics of (up to) the first 1000 recordings
    of the shuffled training part.

    Args:
        data_root (str): Folder with one folder per word.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        features (str): 'raw' for [1, 16000], 'mfcc' for [20, 161]. Defaults to 'raw'.
        seed (int): Seed of the split. Defaults to 0.
        **kwargs: See :class:`SequenceDataset`.
    """

    METAINFO = dict(classes=WORDS)
    _STATISTICS = 1000

    def __init__(self, *args, features: str = 'raw', seed: int = 0, **kwargs) -> None:
        if features not in ('raw', 'mfcc'):
            raise ValueError(f"features must be 'raw' or 'mfcc', got {features!r}")
        self.features = features
        self.seed = seed
        self._mean = self._std = None
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Paths and labels of the split; also sets the statistics."""
        parts = {split: [] for split in SPLITS}
        for label, word in enumerate(WORDS):
            paths = sorted(glob(osp.join(self.data_root, word, '*.wav')))
            paths = [path for path in paths if self._is_whole(path)]
            if not paths:
                raise DataError(f'no recordings of one second in {self.data_root}/{word}; unpack '
                                'Speech Commands v0.02 there or set data_root')
            for split, part in zip(SPLITS, random_parts(len(paths), (.15, .15), self.seed)):
                parts[split] += [dict(img_path=paths[i], gt_label=label) for i in part.tolist()]
        shuffled = [parts['train'][i]
                    for i in random_parts(len(parts['train']), (0, 0), self.seed)[0].tolist()]
        known = torch.stack([self._features(e['img_path']) for e in shuffled[:self._STATISTICS]])
        self._mean = known.mean((0, 2)).unsqueeze(1)
        self._std = known.std((0, 2)).unsqueeze(1).clamp(min=1e-8)
        return parts[self.split]

    @staticmethod
    def _is_whole(path: str) -> bool:
        try:
            with wave.open(path, 'rb') as file:
                return file.getnframes() == SAMPLE_RATE
        except (wave.Error, EOFError) as error:
            raise _unreadable(path, error) from error

    def _features(self, path: str) -> Tensor:
        waveform = read_wave(path)
        return waveform[None] if self.features == 'raw' else mfcc(waveform, SAMPLE_RATE)

    def load_sequence(self, info: dict) -> Tensor:
        """Standardised waveform [1, 16000] or coefficients [20, 161]."""
        return standardise(self._features(info['img_path']), self._mean, self._std)
