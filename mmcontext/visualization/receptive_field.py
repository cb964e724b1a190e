"""The effective receptive field: which pixels a unit in the middle of a feature map looks at.

As in "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
arXiv 1701.04128, and "Scaling Up Your Kernels to 31x31", arXiv 2203.06717: the gradient of the
middle unit with respect to the image, its positive part summed over channels and images.
"""
from typing import Callable, Dict, Sequence, Tuple

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

SHARES = (0.5, 0.9, 0.99)


def effective_receptive_field(features: Callable[[Tensor], Tensor],
                              images: Sequence[Tensor]) -> Tensor:
    """Contribution of every pixel to the middle unit.

    Args:
        features: From images [B, C, H, W] to a feature map [B, D, h, w].
        images: Batches of one size.

    Returns:
        [H, W], float64, adding up to 1.

    Raises:
        ValueError: The middle unit depends on no pixel, or with NaN.
    """
    total = 0.
    for image in track_iter_progress(list(images)):
        image = image.detach().clone().requires_grad_()
        with torch.enable_grad():
            y = features(image)
            middle = y[:, :, y.shape[2] // 2, y.shape[3] // 2]
            gradient, = torch.autograd.grad(middle.sum(), image)
        total = total + gradient.double().clamp(min=0).sum(dim=(0, 1))
    if not total.sum() > 0:
        raise ValueError('the middle unit of the feature map depends on no pixel')
    return total / total.sum()


def stage_features(backbone: nn.Module, stage: int = -1) -> Callable[[Tensor], Tensor]:
    """The feature map of a stage of a backbone.

    Args:
        backbone: Returns a tuple of feature maps.
        stage: 0 to 3, or -1 for the last. All of them are switched on.

    Raises:
        ValueError: There is no such stage.
    """
    if hasattr(backbone, 'out_indices') and hasattr(backbone, 'layer4'):
        backbone.out_indices = (0, 1, 2, 3)

    def features(x: Tensor) -> Tensor:
        levels = backbone(x)
        if not -len(levels) <= stage < len(levels):
            raise ValueError(f'stage must be below {len(levels)}, the number of levels of '
                             f'{type(backbone).__name__}, got {stage}')
        return levels[stage]

    return features


def square_that_holds(field: Tensor, share: float) -> Tuple[int, float]:
    """The smallest square around the middle with a share of the field.

    Args:
        field: [H, W], adding up to 1.
        share: Between 0 and 1.

    Returns:
        Its side in pixels, odd, at most the longer side; and its area over that of the image.
    """
    height, width = field.shape
    row, column = height // 2, width // 2
    integral = torch.zeros(height + 1, width + 1, dtype=torch.float64)
    integral[1:, 1:] = field.double().cumsum(0).cumsum(1)
    for radius in range(max(height, width)):
        top, bottom = max(row - radius, 0), min(row + radius + 1, height)
        left, right = max(column - radius, 0), min(column + radius + 1, width)
        held = (integral[bottom, right] - integral[top, right] - integral[bottom, left]
                + integral[top, left])
        if held >= share - 1e-9:
            break
    side = min(2 * radius + 1, max(height, width))
    return side, (bottom - top) * (right - left) / (height * width)


def areas(field: Tensor, shares: Sequence[float] = SHARES) -> Dict[float, Tuple[int, float]]:
    """:func:`square_that_holds` for several shares."""
    return {share: square_that_holds(field, share) for share in shares}
