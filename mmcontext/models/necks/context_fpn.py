"""Feature pyramid network whose output convolutions are any context operator."""
from typing import Optional, Sequence, Tuple, Union

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmcontext.layers.conv_norm import FusedConvModule
from mmcontext.models.context_module import ContextModule
from mmcontext.registry import MODELS

_EXTRA_SOURCES = ('on_input', 'on_lateral', 'on_output')


@MODELS.register_module()
class ContextFPN(BaseModule):
    """FPN with an operator instead of the 3x3 output convolutions.

    The lateral 1x1 convolutions, the top-down path and the extra levels are those of
    `Feature Pyramid Networks <https://arxiv.org/abs/1612.03144>`_; the operator replaces the
    output convolutions as in `Involution <https://arxiv.org/abs/2103.06255>`_. The arguments
    are those of mmdet's and mmseg's ``FPN`` plus ``context_cfg``, and with
    ``context_cfg=None`` parameters, their names and results are those of ``FPN`` too. Only
    mmengine and mmcv are needed.

    Extra levels (``add_extra_convs``) are computed by plain 3x3 convolutions of stride 2, as in
    the authors' code.

    Args:
        in_channels (Sequence[int]): channels of each input level.
        out_channels (int): channels of each output level.
        num_outs (int): number of output levels.
        context_cfg (dict, optional): operator of the outputs, such as
            ``dict(type='mmcontext.CVolution2d')``, without the numbers of channels. None
            means a 3x3 convolution. Defaults to None.
        start_level (int): first input level used. Defaults to 0.
        end_level (int): last input level used, -1 for the last one. With a level other than
            the last, there are no extra levels. Defaults to -1.
        add_extra_convs (bool | str): how the levels beyond the inputs are computed: False by
            max-pooling, 'on_input', 'on_lateral' or 'on_output' by convolutions on the last
            input, lateral or output; True means 'on_input'. Defaults to False.
        relu_before_extra_convs (bool): whether to apply ReLU before every extra convolution
            but the first. Defaults to False.
        no_norm_on_lateral (bool): whether the laterals have no norm. Defaults to False.
        conv_cfg (dict, optional): type of the lateral, extra and (without ``context_cfg``)
            output convolutions. Defaults to None.
        norm_cfg (dict, optional): norm after every convolution and operator. Defaults to
            None.
        act_cfg (dict, optional): activation after every convolution and operator. Defaults
            to None.
        upsample_cfg (dict): arguments of ``F.interpolate`` on the top-down path. Defaults to
            ``dict(mode='nearest')``.
        init_cfg (dict | list[dict]): defaults to Xavier-uniform for every ``Conv2d``, including
            those inside the operators.

    Raises:
        TypeError: if ``in_channels`` is not a sequence.
        ValueError: if the levels do not fit together or ``add_extra_convs`` is unknown.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        context_cfg: Optional[dict] = None,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: Union[bool, str] = False,
        relu_before_extra_convs: bool = False,
        no_norm_on_lateral: bool = False,
        conv_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = None,
        act_cfg: Optional[dict] = None,
        upsample_cfg: dict = dict(mode='nearest'),
        init_cfg: Union[dict, list, None] = dict(
            type='Xavier', layer='Conv2d', distribution='uniform'),
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not isinstance(in_channels, (list, tuple)):
            raise TypeError('in_channels must be a list of the channels of each level, got '
                            f'{in_channels!r}')
        levels = len(in_channels)
        last = levels - 1 if end_level == -1 else end_level
        if not 0 <= start_level <= last < levels:
            raise ValueError(f'start_level {start_level} and end_level {end_level} do not '
                             f'select levels out of {levels}')
        used = last + 1 - start_level
        if num_outs < used:
            raise ValueError(f'num_outs must be at least the {used} levels used, got {num_outs}')
        if num_outs > used and last != levels - 1:
            raise ValueError(f'num_outs must be {used} when end_level {end_level} is not the '
                             f'last of {levels} levels, got {num_outs}')
        if add_extra_convs is True:
            add_extra_convs = 'on_input'
        if add_extra_convs is not False and add_extra_convs not in _EXTRA_SOURCES:
            raise ValueError(f'add_extra_convs must be a bool or one of {_EXTRA_SOURCES}, got '
                             f'{add_extra_convs!r}')
        self.in_channels = list(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.start_level = start_level
        self.end_level = end_level
        self.backbone_end_level = last + 1
        self.add_extra_convs = add_extra_convs
        self.relu_before_extra_convs = relu_before_extra_convs
        self.upsample_cfg = dict(upsample_cfg)

        conv_args = dict(conv_cfg=conv_cfg, act_cfg=act_cfg, inplace=False)
        self.lateral_convs = nn.ModuleList()
        self.fpn_convs = nn.ModuleList()
        for level in range(start_level, self.backbone_end_level):
            self.lateral_convs.append(FusedConvModule(
                in_channels[level], out_channels, 1,
                norm_cfg=None if no_norm_on_lateral else norm_cfg, **conv_args))
            if context_cfg is None:
                output = FusedConvModule(out_channels, out_channels, 3, padding=1,
                                         norm_cfg=norm_cfg, **conv_args)
            else:
                output = ContextModule(out_channels, out_channels, context_cfg,
                                       norm_cfg=norm_cfg, act_cfg=act_cfg)
            self.fpn_convs.append(output)
        if add_extra_convs:
            for extra in range(num_outs - used):
                on_input = extra == 0 and add_extra_convs == 'on_input'
                self.fpn_convs.append(FusedConvModule(
                    in_channels[last] if on_input else out_channels, out_channels, 3, stride=2,
                    padding=1, norm_cfg=norm_cfg, **conv_args))

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Fuse the feature maps from coarse to fine.

        Args:
            inputs (Sequence[Tensor]): one map ``[B, in_channels[i], H_i, W_i]`` per level,
                finest first.

        Returns:
            tuple[Tensor]: ``num_outs`` maps of ``out_channels`` channels, finest first; the
            first ones have the sizes of the inputs from ``start_level`` on.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'ContextFPN was built for {len(self.in_channels)} levels, got '
                             f'{len(inputs)}')
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs[self.start_level:])]
        for fine in range(len(laterals) - 2, -1, -1):
            resize = self.upsample_cfg
            if 'scale_factor' not in resize:
                resize = dict(size=laterals[fine].shape[2:], **resize)
            laterals[fine] = laterals[fine] + F.interpolate(laterals[fine + 1], **resize)

        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        extra_convs = self.fpn_convs[len(laterals):]
        if not self.add_extra_convs:
            while len(outs) < self.num_outs:
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        for index, conv in enumerate(extra_convs):
            if index == 0:
                source = {'on_input': inputs[self.backbone_end_level - 1],
                          'on_lateral': laterals[-1],
                          'on_output': outs[-1]}[self.add_extra_convs]
            elif self.relu_before_extra_convs:
                source = F.relu(outs[-1])
            else:
                source = outs[-1]
            outs.append(conv(source))
        return tuple(outs)
