"""Mask head whose convolutions are any context operator (needs mmdet)."""
from typing import Optional

from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.model import ModuleList

from mmcontext.models.context_module import ContextModule
from mmcontext.registry import MODELS


@MODELS.register_module()
class ContextFCNMaskHead(FCNMaskHead):
    """mmdet's ``FCNMaskHead`` with operators, each followed by ReLU, instead of 3x3 convs.

    As in the heads of `Involution <https://arxiv.org/abs/2103.06255>`_.

    Args:
        context_cfg (dict, optional): the operator, such as
            ``dict(type='mmcontext.Involution2d')``, without the numbers of channels. None
            keeps mmdet's convolutions. Defaults to None.
        **kwargs: the arguments of ``FCNMaskHead``; ``norm_cfg`` adds a norm after every
            operator, ``conv_kernel_size`` and ``conv_cfg`` do not affect operators.
    """

    def __init__(self, context_cfg: Optional[dict] = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.context_cfg = context_cfg
        if context_cfg is None:
            return
        channels = [self.in_channels] + [self.conv_out_channels] * self.num_convs
        self.convs = ModuleList(
            ContextModule(channels[i], channels[i + 1], context_cfg, norm_cfg=self.norm_cfg,
                          act_cfg=dict(type='ReLU'), inplace=True)
            for i in range(self.num_convs))
