"""The effective receptive field: the pixels that affect a unit in the centre of a feature map.

As in "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
arXiv 1701.04128, and "Scaling Up Your Kernels to 31x31", arXiv 2203.06717: the gradient of the
central unit with respect to the image, its positive part summed over channels and images.
"""
from typing import Callable, Dict, Sequence, Tuple

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor, nn

from mmcontext.visualization.networks import Network, settle

SHARES = (0.5, 0.9, 0.99)


def effective_receptive_field(features: Callable[[Tensor], Tensor],
                              images: Sequence[Tensor]) -> Tensor:
    """Contribution of every pixel to the central unit.

    Args:
        features: From images [B, C, H, W] to a feature map [B, D, h, w].
        images: Batches of the same size.

    Returns:
        [H, W], float64, adding up to 1.

    Raises:
        ValueError: The central unit depends on no pixel, or its gradient is NaN.
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


def field_of(network: Network, x: Tensor, stage: int = -1) -> Tensor:
    """The effective receptive field of a network.

    The norms of an untrained network have the statistics of the given images, and everything is
    in float64: if the layers multiply features by kernels, and these by a gate, differences grow
    exponentially with depth.

    Args:
        network: The network with the backbone to examine.
        x: Its inputs, [B, C, H, W].
        stage: See :func:`stage_features`.

    Returns:
        [H, W], float64, adding up to 1.

    Raises:
        ValueError: See :func:`effective_receptive_field` and :func:`stage_features`.
    """
    features = stage_features(network.backbone, stage)
    if network.trained:
        return effective_receptive_field(features, x.split(1))

    def settled(image: Tensor) -> Tensor:
        settle(network.backbone, image)
        return features(image)

    dtype = x.dtype
    network.backbone.double()
    try:
        return effective_receptive_field(settled, x.double().split(1))
    finally:
        network.backbone.to(dtype)


def square_that_holds(field: Tensor, share: float) -> Tuple[int, float]:
    """The smallest square around the centre that contains a share of the field.

    Args:
        field: [H, W], adding up to 1.
        share: Between 0 and 1.

    Returns:
        Its side in pixels, odd, at most the longer side; and its area relative to the image.
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
