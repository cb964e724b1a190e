from typing import List, Tuple

import torch
import torch.nn as nn
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from mmcontext.layers.conv_norm import FusedConvModule
from mmcontext.models.context_module import ContextModule
from mmcontext.models.heads.seg_labels import stack_labels
from mmcontext.registry import MODELS


@MODELS.register_module()
class ContextFCNHead(BaseDecodeHead):
    """FCN decode head whose convolutions are a context operator.

    mmseg's FCNHead (`FCN <https://arxiv.org/abs/1411.4038>`_) with
    CoConv, PyConv, CoT, involution, C-volution or any other registered
    operator instead of its 3x3 convolutions. A layer that changes the number
    of channels does so in a 1x1 convolution with norm and activation before
    the operator, which then preserves the number of channels.

    Args:
        context_cfg (dict): Config of the operator, such as
            ``dict(type='mmcontext.CVolution2d')``; its in_channels and
            out_channels are filled in, everything else not given here has
            the operator's default.
        num_convs (int): Number of operator layers. Default: 2.
        concat_input (bool): Whether one more operator layer reads the input
            along with the output of the others. Default: True.
        **kwargs: As in mmseg's BaseDecodeHead (``in_channels``, ``channels``
            and ``num_classes`` are required).

    Shapes:
        - Input: list of feature maps, chosen by ``in_index`` and
          ``input_transform``, [B, in_channels, H, W].
        - Output: logits [B, num_classes, H, W].
    """

    def __init__(self,
                 context_cfg: dict,
                 num_convs: int = 2,
                 concat_input: bool = True,
                 **kwargs):
        super().__init__(**kwargs)
        if self.input_transform == 'multiple_select':
            raise ValueError(
                "input_transform='multiple_select' gives several feature "
                "maps, expected None or 'resize_concat'")
        if num_convs < 0:
            raise ValueError(f'num_convs={num_convs} must not be negative')
        if num_convs == 0 and self.in_channels != self.channels:
            raise ValueError(
                f'with num_convs=0 channels={self.channels} must equal '
                f'in_channels={self.in_channels}')
        self.context_cfg = context_cfg
        widths = [self.in_channels] + [self.channels] * num_convs
        self.convs = nn.Sequential(
            *[self._layer(i, o) for i, o in zip(widths, widths[1:])])
        self.concat_input = concat_input
        if concat_input:
            self.conv_cat = self._layer(self.in_channels + self.channels,
                                        self.channels)

    def _layer(self, in_channels: int, out_channels: int) -> nn.Sequential:
        context = ContextModule(
            out_channels, out_channels, self.context_cfg, norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg, inplace=True)
        if in_channels == out_channels:
            return nn.Sequential(context)
        return nn.Sequential(
            FusedConvModule(
                in_channels, out_channels, 1, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg,
                act_cfg=self.act_cfg), context)

    def forward(self, inputs: Tuple[Tensor]) -> Tensor:
        """Logits at the resolution of the selected feature map."""
        x = self._transform_inputs(inputs)
        feats = self.convs(x)
        if self.concat_input:
            feats = self.conv_cat(torch.cat([x, feats], dim=1))
        return self.cls_seg(feats)

    def _stack_batch_gt(self, batch_data_samples: List) -> Tensor:
        return stack_labels(batch_data_samples, self.num_classes,
                            self.ignore_index)
