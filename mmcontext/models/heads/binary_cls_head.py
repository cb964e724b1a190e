"""Two-class head with a single logit."""
from typing import List, Optional

import torch
import torch.nn.functional as F
from mmpretrain.evaluation.metrics import Accuracy
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor

from mmcontext.registry import MODELS


@MODELS.register_module()
class BinaryClsHead(LinearClsHead):
    """Linear head with one logit for two classes, trained with binary cross-entropy.

    The logit is that of class 1. Predictions have a score per class as with any other head, so
    that mmpretrain's metrics work.

    Args:
        in_channels (int): Channels of the pooled features.
        cal_acc (bool): Whether to report the accuracy of training batches. Defaults to False.
        init_cfg (dict, optional): Initialisation. Defaults to Kaiming with fan-in.

    The loss raises a ValueError for labels other than 0 and 1.
    """

    def __init__(self,
                 in_channels: int,
                 cal_acc: bool = False,
                 init_cfg: Optional[dict] = dict(
                     type='Kaiming', layer='Linear', mode='fan_in')) -> None:
        super().__init__(1, in_channels, init_cfg, cal_acc=cal_acc,
                         loss=dict(type='CrossEntropyLoss', use_sigmoid=True))

    @staticmethod
    def _log_scores(logit: Tensor) -> Tensor:
        """[B, 1] to the log-probabilities of both classes [B, 2]."""
        return torch.cat([F.logsigmoid(-logit), F.logsigmoid(logit)], dim=1)

    def _get_loss(self, cls_score: Tensor, data_samples: List[DataSample], **kwargs) -> dict:
        target = torch.cat([sample.gt_label for sample in data_samples])
        if target.shape != cls_score.shape[:1] or not ((target == 0) | (target == 1)).all():
            raise ValueError('gt_label of every sample must be one class, 0 or 1, for '
                             f'BinaryClsHead, got {target.tolist()} for {len(cls_score)} samples')
        losses = dict(loss=F.binary_cross_entropy_with_logits(
            cls_score.float().squeeze(1), target.to(torch.float32)))
        if self.cal_acc:
            (accuracy, ), = Accuracy.calculate(self._log_scores(cls_score).exp(), target)
            losses['accuracy_top-1'] = accuracy
        return losses

    def _get_predictions(self, cls_score: Tensor,
                         data_samples: Optional[List[DataSample]]) -> List[DataSample]:
        # The softmax of the base class turns log-probabilities into the two scores.
        return super()._get_predictions(self._log_scores(cls_score), data_samples)
