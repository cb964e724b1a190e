"""Region proposal head whose shared convolution is any context operator (needs mmdet)."""
from typing import Optional

from mmdet.models.dense_heads import RPNHead
from torch import nn

from mmcontext.models.context_module import ContextModule
from mmcontext.registry import MODELS

# The operator keeps its own initialisation; only the predictors get the RPN's.
_PREDICTOR_INIT = dict(
    type='Normal', std=0.01, override=[dict(name='rpn_cls'), dict(name='rpn_reg')])


@MODELS.register_module()
class ContextRPNHead(RPNHead):
    """mmdet's ``RPNHead`` with operators instead of the shared 3x3 convolutions.

    As in the heads of `Involution <https://arxiv.org/abs/2103.06255>`_.

    Args:
        in_channels (int): channels of each feature map.
        context_cfg (dict, optional): the operator, such as
            ``dict(type='mmcontext.Involution2d')``, without the numbers of channels. None
            keeps mmdet's convolutions. Defaults to None.
        num_convs (int): number of operators, each with its own ReLU. Defaults to 1.
        init_cfg (dict | list[dict], optional): with an operator, defaults to a normal
            distribution of standard deviation 0.01 for the two predictors and the operator's
            own initialisation; without one, to that of ``RPNHead``.
        **kwargs: the other arguments of ``RPNHead`` (``feat_channels``,
            ``anchor_generator``, ...).
    """

    def __init__(self,
                 in_channels: int,
                 context_cfg: Optional[dict] = None,
                 num_convs: int = 1,
                 init_cfg: Optional[dict] = None,
                 **kwargs) -> None:
        # Read by _init_layers, which the parent's constructor calls.
        self.context_cfg = context_cfg
        if init_cfg is None and context_cfg is not None:
            init_cfg = _PREDICTOR_INIT
        if init_cfg is not None:
            kwargs['init_cfg'] = init_cfg
        super().__init__(in_channels, num_convs=num_convs, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.context_cfg is None:
            return
        channels = [self.in_channels] + [self.feat_channels] * self.num_convs
        # The last ReLU is applied by RPNHead.forward_single.
        acts = [dict(type='ReLU')] * (self.num_convs - 1) + [None]
        modules = [
            ContextModule(channels[i], channels[i + 1], self.context_cfg, act_cfg=act)
            for i, act in enumerate(acts)
        ]
        self.rpn_conv = nn.Sequential(*modules) if self.num_convs > 1 else modules[0]
