"""Class activation maps with pytorch-grad-cam."""
from typing import List, Optional

import numpy as np
import torch
from torch import Tensor, nn

from mmcontext.utils.errors import UserError, required
from mmcontext.visualization.networks import Network, logits

METHODS = ('gradcam', 'gradcam++', 'layercam', 'eigencam', 'hirescam', 'xgradcam')


class _Logits(nn.Module):
    """A classifier of an mm library as a module from images to logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model = network.model
        self._network = network

    def forward(self, x: Tensor) -> Tensor:
        return logits(self._network, x)


def target_layer(network: Network, stage: Optional[int] = None) -> nn.Module:
    """The module from whose output the map is computed.

    Args:
        network: A classifier with a backbone of stages, or a CCNN.
        stage: 0 to 3; None for the last one. A CCNN has its last block instead.

    Raises:
        UserError: It is not such a network, or has no such stage.
    """
    backbone = network.backbone
    if hasattr(backbone, 'blocks'):
        return backbone.blocks[-1]
    stage = 3 if stage is None else stage
    name = f'layer{stage + 1}'
    if not hasattr(backbone, name):
        raise UserError(f'{type(backbone).__name__} has no stage {stage}')
    return getattr(backbone, name)[-1]


def class_activation(network: Network, x: Tensor, method: str = 'gradcam',
                     classes: Optional[List[int]] = None,
                     stage: Optional[int] = None) -> np.ndarray:
    """Where a classifier looks for a class.

    Args:
        network: The classifier.
        x: Its input, [B, 3, H, W].
        method: One of :data:`METHODS`. Defaults to Grad-CAM.
        classes: Class of every image; None for the predicted ones.
        stage: See :func:`target_layer`.

    Returns:
        [B, H, W] in [0, 1].

    Raises:
        UserError: grad-cam is missing, or an argument is wrong.
    """
    library = required('pytorch_grad_cam', 'class activation maps need', 'grad-cam')
    kinds = dict(zip(METHODS, (library.GradCAM, library.GradCAMPlusPlus, library.LayerCAM,
                               library.EigenCAM, library.HiResCAM, library.XGradCAM)))
    if method not in kinds:
        raise UserError(f'method must be one of {", ".join(kinds)}, got {method!r}')
    targets = None
    if classes is not None:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        targets = [ClassifierOutputTarget(label) for label in classes]
    layer = target_layer(network, stage)
    # Gradients reach the layer whether or not the image requires them.
    for parameter in network.model.parameters():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), kinds[method](_Logits(network), [layer]) as cam:
            return cam(input_tensor=x, targets=targets)
    finally:
        network.model.requires_grad_(False)
