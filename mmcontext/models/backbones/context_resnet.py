"""The trunk: a ResNet with configurable stem, spatial layer, shortcut and last norm."""
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.utils.checkpoint as checkpoint
from mmcv.cnn import build_activation_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from mmcontext.layers._modules import call_or_pass
from mmcontext.layers.avg_pool import AvgPool2d
from mmcontext.layers.blur_pool import BlurPool2d
from mmcontext.layers.conv_norm import (
    ConvNormAct,
    FusedConvModule,
    add_to_output,
    conv_norm_act,
    faster_channels_last,
    run_together,
)
from mmcontext.layers.max_pool import MaxPool2d
from mmcontext.layers.norms import build_norm
from mmcontext.models.backbones.freezable import FreezableBackbone
from mmcontext.ops.tracing import is_symbolic
from mmcontext.registry import MODELS

_STAGES = 4
# The dilation of each stage for an output stride; dilated stages have no stride.
_OUTPUT_STRIDES = {32: (1, 1, 1, 1), 16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}


class ResidualBlock(BaseModule):
    """Residual block around a spatial layer: [1x1,] spatial layer, 1x1.

    Args:
        in_channels: Channels of the input.
        width: Channels at the spatial layer.
        out_channels: Channels of the output.
        spatial: The spatial layer, from ``width`` (from ``in_channels`` without ``reduce``)
            to ``width`` channels; norm and activation follow unless it has its own.
        shortcut: Module of the shortcut, or None for the identity.
        reduce: Whether a 1x1 convolution precedes the spatial layer.
        blur_stride: Stride of a blur pool after the spatial layer; 1 for none.
        norm_after_add: Whether the last norm comes after the addition.
        zero_init: Whether the last norm starts at zero, so that the block equals the shortcut.
        drop_path_rate: Probability to drop the residual branch of a sample.
        with_cp: Whether to recompute the block in backward.
        norm_cfg: Norms of the block.
        act_cfg: Activations of the block.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, spatial: nn.Module,
                 shortcut: Optional[nn.Module], reduce: bool, blur_stride: int,
                 norm_after_add: bool, zero_init: bool, drop_path_rate: float, with_cp: bool,
                 norm_cfg: dict, act_cfg: dict) -> None:
        # After the addition a zero norm would zero the shortcut too.
        super().__init__(init_cfg=dict(type='Constant', val=0, override=dict(name='norm3'))
                         if zero_init and not norm_after_add else None)
        self.with_cp = with_cp
        self.norm_after_add = norm_after_add
        self.reduce = conv_norm_act(in_channels, width, 1, norm_cfg, act_cfg,
                                    bias=False) if reduce else nn.Identity()
        self.spatial = spatial
        if getattr(spatial, 'normalised', False):
            self.norm2 = nn.Identity()
        else:
            self.norm2 = ConvNormAct(norm=build_norm(norm_cfg, width),
                                     act=build_activation_layer(act_cfg))
        self.blur = BlurPool2d(blur_stride) if blur_stride > 1 else nn.Identity()
        norm3 = build_norm(norm_cfg, out_channels)
        if norm_after_add:
            # Registered before the convolution, else mmcv's fuse_conv_bn folds the norm into it.
            self.norm3 = norm3
        self.expand = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = norm3
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.act = build_activation_layer(act_cfg)

    def _forward(self, x: Tensor) -> Tensor:
        # (Attribute access of modules is slow, and this runs in every block.)
        modules = self._modules
        y = x
        for name in ('reduce', 'spatial', 'norm2', 'blur'):
            y = call_or_pass(modules[name], y)
        shortcut = call_or_pass(modules['shortcut'], x)
        expand, norm3, drop_path, act = map(modules.get, ('expand', 'norm3', 'drop_path', 'act'))
        drops = self.training and not isinstance(drop_path, nn.Identity)
        if not (drops or self.norm_after_add):
            return run_together(y, expand, norm3, act, shortcut)
        first, last = (None, norm3) if self.norm_after_add else (norm3, None)
        y = drop_path(run_together(y, expand, first))
        y = add_to_output(y, shortcut, (expand, norm3, drop_path))
        return run_together(y, norm=last, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, Ho, Wo]."""
        if self.with_cp and not is_symbolic(x) and x.requires_grad:
            return checkpoint.checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


class ContextResNet(FreezableBackbone):
    """Up to four stages of residual blocks; a family is a subclass that fills in the choices.

    Args:
        depth: Depth of the network, a key of ``arch_settings``.
        in_channels: Channels of the image. Defaults to 3.
        base_channels: Width of the first stage; the published networks have 64.
        strides: Stride of the first block of each stage; None for the published ones.
        dilations: Dilation of the spatial layers of each stage. Defaults to 1 everywhere.
        output_stride: 8 or 16 remove the stride of the last stages and dilate them instead;
            excludes ``strides`` and ``dilations``. None (32 for the published strides).
        out_indices: Stages whose output is returned, always the earliest first. None (default)
            for the last.
        frozen_stages: The stem and that many stages are frozen (parameters and statistics);
            0 is only the stem, -1 (default) nothing.
        norm_cfg: Norms. Defaults to BN. If ``num_groups`` of GN does not divide the width of a
            branch, the largest smaller number that does is used there.
        norm_eval: Whether norms stay in eval mode in training. Defaults to False.
        act_cfg: Activations of stem and blocks. Defaults to ReLU.
        with_cp: Whether to recompute blocks in backward to save memory. Defaults to False.
        drop_path_rate: Drop-path rate of the last block; it grows linearly from 0.
        zero_init_residual: Whether the last norm of each residual branch starts at zero;
            None for the family's published setting.
        layer_cfg: Further arguments of the spatial layers, e.g. ``dict(kernel_size=5)``.
        num_stages: Number of stages, 1 to 4 (3 for C4 detectors). Defaults to 4.
        pretrained: Checkpoint to start from; short for ``init_cfg`` of type Pretrained, as
            passed by mmseg's ``model.pretrained``.
        init_cfg: Initialisation, e.g. ``dict(type='Pretrained', checkpoint=...,
            prefix='backbone.')``. Defaults to Kaiming for convolutions, 1 for norms.

    Attributes:
        feature_channels, feature_strides (list[int]): Of all four stages.

    Shape: [B, in_channels, H, W] -> tuple of [B, C_i, H_i, W_i], one per ``out_indices``,
        sizes H / 4, 8, 16, 32 rounded up.

    Raises:
        ValueError: An argument is out of its range.
    """

    arch_settings: Dict[int, Tuple[int, ...]] = {}
    strides = (1, 2, 2, 2)
    expansion = 4
    stem_type = 'plain'
    max_pool = True
    reduce = True
    # Pool of the shortcut: with None the 1x1 convolution itself has the stride; 'max' precedes it
    # in every first block, 'avg' only in those with a stride.
    shortcut_pool: Optional[str] = None
    norm_after_add_at_stage_end = False
    blur_strides = False
    zero_init_residual = False
    conv_init = 'Kaiming'
    # Minimum number of pixels, batch * height * width, for which contiguous images run
    # channels-last internally, in inference on the CPU.
    channels_last_from = 64 * 64

    def __init__(self,
                 depth: int,
                 in_channels: int = 3,
                 base_channels: int = 64,
                 strides: Optional[Sequence[int]] = None,
                 dilations: Optional[Sequence[int]] = None,
                 output_stride: Optional[int] = None,
                 out_indices: Union[int, Sequence[int], None] = None,
                 frozen_stages: int = -1,
                 norm_cfg: Optional[dict] = None,
                 norm_eval: bool = False,
                 act_cfg: Optional[dict] = None,
                 with_cp: bool = False,
                 drop_path_rate: float = 0.,
                 zero_init_residual: Optional[bool] = None,
                 layer_cfg: Optional[dict] = None,
                 num_stages: int = _STAGES,
                 pretrained: Optional[str] = None,
                 init_cfg: Union[dict, Sequence[dict], None] = None) -> None:
        if pretrained is not None:
            if init_cfg is not None:
                raise ValueError(f'pretrained={pretrained!r} and init_cfg exclude each other')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        super().__init__(init_cfg or [
            dict(type=self.conv_init, layer=['Conv2d']),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])
        ])
        if depth not in self.arch_settings:
            raise ValueError(f'depth of {type(self).__name__} must be one of '
                             f'{sorted(self.arch_settings)}, got {depth!r}')
        if num_stages not in range(1, _STAGES + 1):
            raise ValueError(f'num_stages must be 1 to {_STAGES}, got {num_stages!r}')
        self.depth = depth
        self.num_stages = num_stages
        self.norm_cfg = norm_cfg or dict(type='BN', requires_grad=True)
        self.act_cfg = act_cfg or dict(type='ReLU', inplace=True)
        self.norm_eval = norm_eval
        self.layer_cfg = layer_cfg or {}
        self.base_channels = base_channels
        self.out_indices = self._check_indices(out_indices)
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(f'frozen_stages must be -1 to {num_stages}, got {frozen_stages!r}')
        self.frozen_stages = frozen_stages
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate!r}')
        if zero_init_residual is None:
            zero_init_residual = self.zero_init_residual
        strides, dilations = self._strides_and_dilations(strides, dilations, output_stride)

        self.stem = self._make_stem(in_channels)
        self.pool = MaxPool2d(3, stride=2, padding=1) if self.max_pool else nn.Identity()
        blocks_per_stage = self.arch_settings[depth][:num_stages]
        total = sum(blocks_per_stage)
        channels = self._stem_out_channels()
        self.layer_names = []
        self.feature_channels, self.feature_strides = [], []
        reduction = 4 if self.max_pool else 2
        for stage, blocks in enumerate(blocks_per_stage):
            out_channels = base_channels * 2**stage * self._output_expansion()
            first = sum(blocks_per_stage[:stage])
            layer = Sequential(*(
                self._make_block(
                    stage, index, channels if index == 0 else out_channels, out_channels,
                    stride=strides[stage] if index == 0 else 1, dilation=dilations[stage],
                    last=index == blocks - 1,
                    drop_path_rate=drop_path_rate * (first + index) / max(total - 1, 1),
                    zero_init=zero_init_residual, with_cp=with_cp)
                for index in range(blocks)))
            name = f'layer{stage + 1}'
            self.add_module(name, layer)
            self.layer_names.append(name)
            channels = out_channels
            reduction *= strides[stage]
            self.feature_channels.append(channels)
            self.feature_strides.append(reduction)
        self._freeze_stages()

    # The family's choices

    def _width(self, stage: int) -> int:
        """Channels at the spatial layers of a stage."""
        return self.base_channels * 2**stage

    def _output_expansion(self) -> int:
        """Output channels of a stage, in multiples of base_channels * 2**stage."""
        return self.expansion

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        """Type and arguments of the spatial layer of a block, without widths and geometry."""
        raise NotImplementedError

    def _stem_out_channels(self) -> int:
        return self.base_channels

    def _make_stem(self, in_channels: int) -> nn.Sequential:
        return nn.Sequential(
            self._conv_norm_act(in_channels, self.base_channels, 7, stride=2, padding=3))

    # What all families share

    def _conv_norm_act(self, in_channels: int, out_channels: int, kernel_size: int,
                       **options) -> FusedConvModule:
        return FusedConvModule(in_channels, out_channels, kernel_size, bias=False,
                               norm_cfg=self.norm_cfg, act_cfg=self.act_cfg, **options)

    def _check_indices(self, out_indices: Union[int, Sequence[int], None]) -> Tuple[int, ...]:
        if out_indices is None:
            out_indices = self.num_stages - 1
        indices = (out_indices, ) if isinstance(out_indices, int) else tuple(out_indices)
        if not indices or any(i not in range(self.num_stages) for i in indices):
            raise ValueError(f'out_indices must be stages 0 to {self.num_stages - 1}, '
                             f'got {out_indices!r}')
        return indices

    def _strides_and_dilations(
            self, strides: Optional[Sequence[int]], dilations: Optional[Sequence[int]],
            output_stride: Optional[int]) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
        if output_stride is not None:
            if output_stride not in _OUTPUT_STRIDES:
                raise ValueError(f'output_stride must be one of {sorted(_OUTPUT_STRIDES)}, '
                                 f'got {output_stride!r}')
            if strides is not None or dilations is not None:
                raise ValueError(f'output_stride={output_stride} excludes strides and dilations')
            dilations = _OUTPUT_STRIDES[output_stride][:self.num_stages]
            strides = tuple(1 if d > 1 else s for s, d in zip(type(self).strides, dilations))
        count = self.num_stages
        strides = tuple(type(self).strides[:count] if strides is None else strides)
        dilations = tuple((1, ) * count if dilations is None else dilations)
        for name, values in (('strides', strides), ('dilations', dilations)):
            if len(values) != count or any(not isinstance(v, int) or v < 1 for v in values):
                raise ValueError(f'{name} must be {count} positive integers, got {values!r}')
        return strides, dilations

    def _make_shortcut(self, in_channels: int, out_channels: int, stride: int,
                       first: bool) -> Optional[nn.Module]:
        pool = conv = norm = None
        conv_stride = stride
        if first and self.shortcut_pool == 'max' and (stride > 1 or in_channels != out_channels):
            pool = MaxPool2d(3, stride, padding=1)
            conv_stride = 1
        elif stride > 1 and self.shortcut_pool == 'avg':
            pool = AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            conv_stride = 1
        if conv_stride > 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride=conv_stride, bias=False)
            norm = build_norm(self.norm_cfg, out_channels)
        return ConvNormAct(conv, norm, pool=pool) if pool or conv else None

    def _make_block(self, stage: int, index: int, in_channels: int, out_channels: int,
                    stride: int, dilation: int, last: bool, drop_path_rate: float,
                    zero_init: bool, with_cp: bool) -> ResidualBlock:
        width = self._width(stage)
        spatial = MODELS.build({
            **self._spatial_cfg(stage, index),
            'in_channels': width if self.reduce else in_channels,
            'out_channels': width,
            'stride': 1 if self.blur_strides else stride,
            'dilation': dilation,
        })
        return ResidualBlock(
            in_channels, width, out_channels, spatial,
            self._make_shortcut(in_channels, out_channels, stride, index == 0), self.reduce,
            stride if self.blur_strides else 1, last and self.norm_after_add_at_stage_end,
            zero_init, drop_path_rate, with_cp, self.norm_cfg, self.act_cfg)

    def _stages(self) -> List[Sequence[nn.Module]]:
        return [(self.stem, ), *((getattr(self, name), ) for name in self.layer_names)]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """The layer to which a parameter belongs, for layer-wise learning rate decay.

        Called by mmpretrain's ``LearningRateDecayOptimWrapperConstructor``.

        Args:
            param_name: Name of the parameter.
            prefix: Prefix of the names of this backbone's parameters, e.g. 'backbone.'.

        Returns:
            Its layer and the number of layers: 0 is the stem, then each block is one, and the
            last is everything after the backbone.
        """
        stages = [len(getattr(self, name)) for name in self.layer_names]
        layers = sum(stages) + 2
        if not param_name.startswith(prefix):
            return layers - 1, layers
        stage, _, rest = param_name[len(prefix):].partition('.')
        if stage not in self.layer_names:
            return 0, layers
        index = self.layer_names.index(stage)
        return 1 + sum(stages[:index]) + int(rest.split('.')[0]), layers

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Feature maps of the stages named by ``out_indices``."""
        turned = (faster_channels_last(x)
                  and x.shape[0] * x.shape[2] * x.shape[3] >= self.channels_last_from)
        if turned:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.pool(self.stem(x))
        outputs = []
        for stage, name in enumerate(self.layer_names):
            x = getattr(self, name)(x)
            if stage in self.out_indices:
                outputs.append(x.contiguous() if turned else x)
        return tuple(outputs)
