from typing import Sequence

import torch
from mmseg.structures.sampler.base_pixel_sampler import BasePixelSampler
from torch import Tensor, nn

from mmcontext.registry import TASK_UTILS


@TASK_UTILS.register_module()
class ClassWeightSampler(BasePixelSampler):
    """Weights the loss of each pixel by its class; unlabelled pixels get weight 0.

    Used as ``sampler`` of an mmsegmentation decode head. The losses' own ``class_weight`` does
    the same, but cross entropy looks up the weight of the ignored label too and fails with an
    IndexError as soon as one pixel is unlabelled.

    Args:
        class_weight (Sequence[float]): A weight per class of the head.
        context (nn.Module): The decode head; filled in by it.

    Raises:
        ValueError: There is not one weight for each class.
    """

    def __init__(self, class_weight: Sequence[float], context: nn.Module):
        super().__init__()
        if len(class_weight) != context.num_classes:
            raise ValueError(f'class_weight must be {context.num_classes} numbers '
                             f'(num_classes of the head), got {class_weight!r}')
        self.class_weight = class_weight
        self.context = context

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
        """Logits [B, num_classes, H, W] and labels [B, 1, H, W] -> weights [B, H, W]."""
        labels = seg_label.squeeze(1)
        labelled = labels != self.context.ignore_index
        weights = torch.as_tensor(self.class_weight, dtype=seg_logit.dtype, device=labels.device)
        return weights[labels.where(labelled, 0)] * labelled
