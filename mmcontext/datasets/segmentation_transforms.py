"""Transforms of image and label map for training PyConvSegNet."""
from typing import Tuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, Resize
from mmcv.transforms.utils import cache_randomness

from mmcontext.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomScale(BaseTransform):
    """Resize by a random factor of the image's own size.

    (``RandomResize`` multiplies a size that is the same for all images.)

    Args:
        ratio_range (tuple[float, float]): The factor is drawn uniformly from it.
        resize_type (str): The transform that resizes, with ``scale_factor``. Defaults to
            'Resize', which is that of the default scope.

    Raises:
        ValueError: ``ratio_range`` is not two increasing positive numbers.
    """

    def __init__(self, ratio_range: Tuple[float, float], resize_type: str = 'Resize') -> None:
        if len(ratio_range) != 2 or not 0 < ratio_range[0] <= ratio_range[1]:
            raise ValueError(f'ratio_range must be two growing positive numbers, got '
                             f'{ratio_range!r}')
        self.ratio_range = tuple(ratio_range)
        self.resize: Resize = TRANSFORMS.build(dict(type=resize_type, scale_factor=1.))

    @cache_randomness
    def _draw(self) -> float:
        return np.random.uniform(*self.ratio_range)

    def transform(self, results: dict) -> dict:
        """Resize image and labels."""
        factor = self._draw()
        self.resize.scale_factor = (factor, factor)
        return self.resize(results)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(ratio_range={self.ratio_range})'


@TRANSFORMS.register_module()
class RandomGaussianBlur(BaseTransform):
    """Blur the image, not the labels, with a Gaussian; its sigma follows from the kernel size.

    Args:
        prob (float): Probability. Defaults to 0.5.
        kernel_size (int): Odd side in pixels. Defaults to 5.

    Raises:
        ValueError: ``prob`` is not a probability, or ``kernel_size`` not odd and positive.
    """

    def __init__(self, prob: float = 0.5, kernel_size: int = 5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be in [0, 1], got {prob!r}')
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd and positive, got {kernel_size!r}')
        self.prob = prob
        self.kernel_size = kernel_size

    def transform(self, results: dict) -> dict:
        """Blur ``img``, or leave it unchanged."""
        if np.random.random() < self.prob:
            size = (self.kernel_size, self.kernel_size)
            results['img'] = cv2.GaussianBlur(results['img'], size, 0)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob}, kernel_size={self.kernel_size})'
