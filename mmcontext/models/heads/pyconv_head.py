from typing import List, Tuple

import torch
import torch.nn as nn
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor

from mmcontext.layers.conv_norm import FusedConvModule
from mmcontext.models.context_module import ContextModule
from mmcontext.models.heads.seg_labels import stack_labels
from mmcontext.models.heads.torch_init_fcn_head import TorchInit
from mmcontext.ops.arguments import IntPair, per_axis
from mmcontext.registry import MODELS


@MODELS.register_module()
class PyConvHead(TorchInit, BaseDecodeHead):
    """Decode head of PyConvSegNet: local and global pyramidal context.

    The head of `Pyramidal Convolution <https://arxiv.org/abs/2006.11538>`_.
    Both branches are a 1x1 convolution, a pyramidal convolution with kernels
    3, 5, 7, 9 and a 1x1 convolution, each followed by norm and activation.
    The local branch works at the resolution of the features; the global one
    on their adaptive average pool, and is resized back bilinearly. A 3x3
    convolution merges the two, followed by dropout and a 1x1 classifier.

    Args:
        in_channels (int): Channels of the input feature map.
        channels (int): Channels after the merge. Default: 256.
        context_channels (int): Width of the global branch and of the output
            of each branch. Default: 512.
        reduction (int): The local branch works on
            ``in_channels // reduction`` channels. Default: 4.
        pool_size (int | tuple[int, int]): Height and width in cells of the
            global branch. Default: 9.
        context_cfg (dict): Config of the operator in both branches, any
            registered one; its in_channels and out_channels are filled in.
            Default: ``dict(type='mmcontext.PyConv2d', levels=4)``.
        align_corners (bool): ``align_corners`` of every bilinear resize.
            Default: True, as in the authors' code.
        **kwargs: As in mmseg's BaseDecodeHead (``num_classes`` is required).

    Shapes:
        - Input: list of feature maps; number ``in_index`` is used,
          [B, in_channels, H, W] with any H, W >= 1.
        - Output: logits [B, num_classes, H, W].
    """

    def __init__(self,
                 in_channels: int,
                 channels: int = 256,
                 *,
                 context_channels: int = 512,
                 reduction: int = 4,
                 pool_size: IntPair = 9,
                 context_cfg: dict = dict(type='mmcontext.PyConv2d', levels=4),
                 align_corners: bool = True,
                 **kwargs):
        super().__init__(
            in_channels, channels, align_corners=align_corners, **kwargs)
        if reduction < 1 or in_channels % reduction:
            raise ValueError(
                f'reduction={reduction} must be a positive divisor of '
                f'in_channels={in_channels}')
        self.global_pool = nn.AdaptiveAvgPool2d(per_axis('pool_size', pool_size, 2, 1))
        self.local_context = self._branch(in_channels // reduction,
                                          context_channels, context_cfg)
        self.global_context = self._branch(context_channels, context_channels,
                                           context_cfg)
        self.merge = self._conv(2 * context_channels, channels, 3)

    def _conv(self, in_channels: int, out_channels: int,
              kernel_size: int) -> FusedConvModule:
        return FusedConvModule(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg)

    def _branch(self, width: int, out_channels: int,
                context_cfg: dict) -> nn.Sequential:
        return nn.Sequential(
            self._conv(self.in_channels, width, 1),
            ContextModule(
                width, width, context_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg,
                inplace=True), self._conv(width, out_channels, 1))

    def forward(self, inputs: Tuple[Tensor]) -> Tensor:
        """Logits at the resolution of the selected feature map."""
        x = self._transform_inputs(inputs)
        global_context = resize(
            self.global_context(self.global_pool(x)),
            size=x.shape[2:],
            mode='bilinear',
            align_corners=self.align_corners,
            warning=False)
        x = torch.cat([self.local_context(x), global_context], dim=1)
        return self.cls_seg(self.merge(x))

    def _stack_batch_gt(self, batch_data_samples: List) -> Tensor:
        return stack_labels(batch_data_samples, self.num_classes,
                            self.ignore_index)
