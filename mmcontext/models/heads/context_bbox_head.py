"""Box head whose convolutions are any context operator (needs mmdet)."""
from typing import Optional

from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from torch import nn

from mmcontext.models.context_module import ContextModule
from mmcontext.registry import MODELS


@MODELS.register_module()
class ContextConvFCBBoxHead(ConvFCBBoxHead):
    """mmdet's ``ConvFCBBoxHead`` with operators, each followed by ReLU, instead of 3x3 convs.

    The defaults give the 4conv1fc head of the `CoTNet <https://arxiv.org/abs/2107.12292>`_
    detectors.

    Args:
        context_cfg (dict, optional): the operator, such as ``dict(type='mmcontext.CoT2d')``,
            without the numbers of channels. None keeps mmdet's convolutions. Defaults to
            None.
        num_shared_convs (int): operators shared by both branches. Defaults to 4.
        num_shared_fcs (int): fully connected layers shared by both branches. Defaults to 1.
        **kwargs: the other arguments of ``ConvFCBBoxHead``; ``norm_cfg`` adds a norm after
            every operator, ``conv_cfg`` does not affect operators.
    """

    def __init__(self,
                 context_cfg: Optional[dict] = None,
                 num_shared_convs: int = 4,
                 num_shared_fcs: int = 1,
                 **kwargs) -> None:
        # Read by _add_conv_fc_branch, which the parent's constructor calls.
        self.context_cfg = context_cfg
        super().__init__(
            num_shared_convs=num_shared_convs, num_shared_fcs=num_shared_fcs, **kwargs)

    def _add_conv_fc_branch(self,
                            num_branch_convs: int,
                            num_branch_fcs: int,
                            in_channels: int,
                            is_shared: bool = False) -> tuple:
        convs, fcs, width = super()._add_conv_fc_branch(
            num_branch_convs, num_branch_fcs, in_channels, is_shared)
        if self.context_cfg is not None:
            channels = [in_channels] + [self.conv_out_channels] * num_branch_convs
            convs = nn.ModuleList(
                ContextModule(channels[i], channels[i + 1], self.context_cfg,
                              norm_cfg=self.norm_cfg, act_cfg=dict(type='ReLU'), inplace=True)
                for i in range(num_branch_convs))
        return convs, fcs, width
