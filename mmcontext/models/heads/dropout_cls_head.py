"""Linear classification head with dropout."""
from typing import Tuple

from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from mmcontext.registry import MODELS


# The second name is that of version 0.1.
@MODELS.register_module(name=['DropoutClsHead', 'LinearClsHead'])
class DropoutClsHead(LinearClsHead):
    """mmpretrain's ``LinearClsHead`` with dropout before the linear layer.

    The state dict has the keys of mmpretrain's head (``fc.weight``, ``fc.bias``), so
    checkpoints are interchangeable.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Number of channels of the pooled features.
        dropout (float): Probability of zeroing a feature in training, in [0, 1).
            0.25 in `Contextual Transformer Networks for Visual Recognition
            <https://arxiv.org/abs/2107.12292>`_. Defaults to 0.
        **kwargs: Other arguments of :class:`mmpretrain.models.LinearClsHead`
            (``loss``, ``topk``, ``cal_acc``, ``init_cfg``).

    Raises:
        ValueError: If ``dropout`` is not in [0, 1).
    """

    def __init__(self, num_classes: int, in_channels: int, dropout: float = 0., **kwargs):
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout={dropout} must be in [0, 1)')
        super().__init__(num_classes=num_classes, in_channels=in_channels, **kwargs)
        self.dropout = nn.Dropout(dropout)

    def pre_logits(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Features before the linear layer, with dropout in training.

        Args:
            feats (tuple[Tensor]): Pooled features [B, C]; the last one is used.

        Returns:
            Tensor: [B, C].
        """
        return self.dropout(super().pre_logits(feats))
