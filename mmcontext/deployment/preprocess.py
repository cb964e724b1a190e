"""Preprocessing of images, as a part of a graph and as metadata."""
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from mmcontext.utils.errors import UserError

# Steps of a test pipeline that do not change the image.
_NO_CHANGE = ('LoadImageFromFile', 'LoadAnnotations')


class Normalisation(NamedTuple):
    """Settings of a config's ``data_preprocessor``.

    Attributes:
        mean, std: Per channel in the network's order, for values from 0 to 255.
        swap_channels: Whether the network's order is the reverse of the image file's BGR.
        divisor: Height and width are padded at the bottom and right to multiples of it.
        pad_value: Value of the padding, after normalisation.
    """
    mean: Tuple[float, ...] = (0., )
    std: Tuple[float, ...] = (1., )
    swap_channels: bool = False
    divisor: int = 1
    pad_value: float = 0.

    def metadata(self) -> dict:
        """The same as entries of a model's metadata."""
        return dict(mean=list(self.mean), std=list(self.std),
                    channel_order='rgb' if self.swap_channels else 'bgr',
                    pad_divisor=self.divisor, pad_value=self.pad_value)


def normalisation_of(cfg: Config) -> Normalisation:
    """The processing of images by a config's ``data_preprocessor`` at test time.

    Raises:
        UserError: It cannot be expressed as a graph.
    """
    settings = dict(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})
    if settings.get('test_cfg'):
        raise UserError('images that data_preprocessor.test_cfg pads cannot be exported, got '
                        f'{settings["test_cfg"]}')
    swap = any(settings.get(name) for name in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    mean, std = settings.get('mean'), settings.get('std')
    return Normalisation(
        tuple(map(float, (0., ) if mean is None else mean)),
        tuple(map(float, (1., ) if std is None else std)), swap,
        settings.get('pad_size_divisor', 1),
        float(settings.get('pad_value', settings.get('pad_val', 0))))


class Preprocess(nn.Module):
    """From images as OpenCV reads them to the inputs of a network.

    Args:
        settings: See :class:`Normalisation`.

    Shape: uint8 [B, H, W, 3], BGR, to float [B, 3, H', W'], padded at the bottom and right.
    """

    def __init__(self, settings: Normalisation) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer('mean', torch.tensor(settings.mean).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(settings.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # mmcv's RoIAlign on a CPU reads channels-last features incorrectly.
        x = images.permute(0, 3, 1, 2).to(self.mean.dtype).contiguous()
        if self.settings.swap_channels:
            x = x.flip(1)
        x = (x - self.mean) / self.std
        if self.settings.divisor > 1:
            bottom, right = (-size % self.settings.divisor for size in x.shape[2:])
            x = F.pad(x, (0, right, 0, bottom), value=self.settings.pad_value)
        return x


def _pair(size) -> List[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _resizing(step: dict) -> Optional[dict]:
    """A step of a pipeline in the metadata's terms: sizes are [width, height]."""
    kind = step['type'].rpartition('.')[2]
    if kind in _NO_CHANGE or kind.startswith('Pack'):
        return None
    interpolation = step.get('interpolation', 'bilinear')
    if kind == 'Resize' and step.get('scale') is not None:
        return dict(type='resize', size=_pair(step['scale']),
                    keep_ratio=step.get('keep_ratio', False), interpolation=interpolation)
    if kind == 'ResizeEdge' and step.get('edge', 'short') == 'short':
        return dict(type='resize_short', size=step['scale'], interpolation=interpolation)
    if kind == 'CenterCrop':
        return dict(type='center_crop', size=_pair(step['crop_size']))
    return dict(type=kind)


def test_dataset(cfg: Config) -> dict:
    """The data set that a config tests on, without wrappers."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def resizing_of(cfg: Config) -> List[dict]:
    """How the test pipeline of a config resizes images, for the metadata."""
    steps = map(_resizing, test_dataset(cfg).get('pipeline') or ())
    return [step for step in steps if step is not None]


def input_size(resizing: Sequence[dict]) -> Optional[Tuple[int, int]]:
    """Maximum height and width after the last step; None if no step specifies them."""
    for step in reversed(resizing):
        if step['type'] in ('resize', 'center_crop'):
            return step['size'][1], step['size'][0]
    return None
