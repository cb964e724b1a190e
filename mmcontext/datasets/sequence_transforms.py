"""Images and audio as sequences."""
import math
from functools import lru_cache
from typing import Optional, Sequence, Union

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from torch import Tensor

from mmcontext.registry import TRANSFORMS

Numbers = Union[float, Sequence[float]]


def _channel_values(name: str, values: Numbers, channels: int) -> Tensor:
    values = torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1)
    if len(values) not in (1, channels):
        raise ValueError(f'{name} must have 1 or {channels} values, one a channel, got '
                         f'{len(values)}')
    return values


@TRANSFORMS.register_module()
class ImageToSequence(BaseTransform):
    """Turn an image into a normalised sequence of its pixels, row by row.

    This is how sequential MNIST and CIFAR-10, permuted MNIST and the image tasks of the long-range
    arena are made. ``PackInputs`` accepts the result as it is; the data preprocessor must not
    normalise again.

    Required keys: img, [H, W] or [H, W, C]. Modified keys: img, float32 tensor [C, H * W].

    Args:
        mean (float | Sequence[float]): Subtracted, per channel, in the image's units.
            Defaults to 0.
        std (float | Sequence[float]): Divided by, per channel. Defaults to 1.
        permute_seed (int, optional): Shuffle the positions with the permutation that
            ``numpy.random.RandomState(seed)`` draws, the same for every image. None keeps the
            order. Defaults to None.
    """

    def __init__(self,
                 mean: Numbers = 0.,
                 std: Numbers = 1.,
                 permute_seed: Optional[int] = None) -> None:
        if np.any(np.asarray(std) == 0):
            raise ValueError(f'std must not be zero, got {std!r}')
        self.mean = mean
        self.std = std
        self.permute_seed = permute_seed

    @staticmethod
    @lru_cache(maxsize=8)
    def _order(seed: int, length: int) -> Tensor:
        return torch.from_numpy(np.random.RandomState(seed).permutation(length))

    def transform(self, results: dict) -> dict:
        """Replace ``results['img']`` by the sequence."""
        image = np.asarray(results['img'])
        if image.ndim not in (2, 3):
            raise ValueError(f'img must be [H, W] or [H, W, C], got shape {image.shape}')
        pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
        pixels = pixels.reshape(image.shape[0] * image.shape[1], -1).t()
        mean = _channel_values('mean', self.mean, len(pixels))
        std = _channel_values('std', self.std, len(pixels))
        sequence = (pixels - mean) / std
        if self.permute_seed is not None:
            sequence = sequence[:, self._order(self.permute_seed, sequence.shape[1])]
        results['img'] = sequence.contiguous()
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(mean={self.mean}, std={self.std}, '
                f'permute_seed={self.permute_seed})')


@lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, num_bins: int, num_mels: int) -> Tensor:
    """Triangles [num_bins, num_mels] of height one, evenly spaced on the HTK mel scale."""

    def mel(hertz):
        return 2595 * math.log10(1 + hertz / 700)

    edges = torch.linspace(mel(0), mel(sample_rate / 2), num_mels + 2, dtype=torch.float64)
    edges = 700 * (10**(edges / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, num_bins, dtype=torch.float64)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


@lru_cache(maxsize=8)
def _dct(num_coefficients: int, num_mels: int) -> Tensor:
    """Orthonormal DCT-II, [num_mels, num_coefficients]."""
    mels = torch.arange(num_mels, dtype=torch.float64) + 0.5
    angles = math.pi / num_mels * mels[:, None] * torch.arange(num_coefficients)
    basis = torch.cos(angles) * math.sqrt(2 / num_mels)
    basis[:, 0] /= math.sqrt(2)
    return basis.float()


def mfcc(waveform: Tensor,
         sample_rate: int = 16000,
         num_coefficients: int = 20,
         num_mels: int = 64,
         n_fft: int = 200) -> Tensor:
    """Mel-frequency cepstral coefficients of a waveform, from log mel powers.

    Hann windows of ``n_fft`` samples every ``n_fft // 2`` samples, reflected at the ends, so a
    second at 16 kHz gives 161 frames with the defaults.

    Args:
        waveform (Tensor): [..., samples].
        sample_rate (int): In hertz. Defaults to 16000.
        num_coefficients (int): Defaults to 20.
        num_mels (int): Mel bands, at least ``num_coefficients``. Defaults to 64.
        n_fft (int): Defaults to 200.

    Returns:
        Tensor: [..., num_coefficients, frames], float32.
    """
    if num_coefficients > num_mels:
        raise ValueError(f'num_coefficients must not exceed num_mels {num_mels}, got '
                         f'{num_coefficients}')
    waveform = waveform.float()
    flat = waveform.reshape(-1, waveform.shape[-1])
    spectrum = torch.stft(flat, n_fft, hop_length=n_fft // 2, window=torch.hann_window(n_fft),
                          center=True, pad_mode='reflect', return_complex=True)
    power = spectrum.abs().square().transpose(1, 2)
    mels = power @ _mel_filters(sample_rate, n_fft // 2 + 1, num_mels)
    coefficients = torch.log(mels + 1e-6) @ _dct(num_coefficients, num_mels)
    return coefficients.transpose(1, 2).reshape(*waveform.shape[:-1], num_coefficients, -1)
