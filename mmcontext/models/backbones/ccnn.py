"""The continuous CNN: one network for sequences, images and volumes."""
from typing import Optional, Sequence, Tuple

import torch.nn as nn
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor

from mmcontext.registry import MODELS

_POINTWISE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_CHANNEL_DROPOUT = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
# What mmcv calls BatchNorm over a number of axes.
_BATCH_NORM = {1: 'BN1d', 2: 'BN2d', 3: 'BN3d'}


class _Parts:
    """Builds the layers of a CCNN, all for the same number of axes."""

    def __init__(self, conv_cfg: dict, norm_cfg: Optional[dict], act_cfg: dict,
                 drop_type: str) -> None:
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        self.act_cfg = act_cfg
        self.drop_type = drop_type
        self.dim: Optional[int] = None

    def conv(self, in_channels: int, out_channels: int) -> nn.Module:
        layer = MODELS.build(dict(self.conv_cfg, _scope_='mmcontext', in_channels=in_channels,
                                  out_channels=out_channels))
        self.dim = layer.dim
        return layer

    def norm(self, channels: int) -> nn.Module:
        if self.norm_cfg is None:
            return nn.Identity()
        cfg = dict(self.norm_cfg)
        if cfg['type'] == 'BN':
            cfg['type'] = _BATCH_NORM[self.dim]
        return build_norm_layer(cfg, channels)[1]

    def act(self) -> nn.Module:
        return build_activation_layer(self.act_cfg)

    def dropout(self, rate: float) -> nn.Module:
        kind = nn.Dropout if self.drop_type == 'element' else _CHANNEL_DROPOUT[self.dim]
        return kind(rate)

    def pointwise(self, in_channels: int, out_channels: int) -> nn.Module:
        layer = _POINTWISE[self.dim](in_channels, out_channels, 1)
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def shortcut(self, in_channels: int, out_channels: int) -> nn.Module:
        if in_channels == out_channels:
            return nn.Identity()
        return self.pointwise(in_channels, out_channels)


class S4Block(nn.Module):
    """norm, conv, act, dropout, 1x1, act, + shortcut; without ``pre_norm`` the norm comes last.

    Args:
        parts (_Parts): Layer builder.
        in_channels, out_channels (int): Channels.
        drop_rate (float): Dropout.
        pre_norm (bool): Where the norm stands. Defaults to True.
    """

    def __init__(self, parts: _Parts, in_channels: int, out_channels: int, drop_rate: float,
                 pre_norm: bool = True) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.conv1 = parts.conv(in_channels, out_channels)
        self.norm1 = parts.norm(in_channels if pre_norm else out_channels)
        self.linear1 = parts.pointwise(out_channels, out_channels)
        self.act = parts.act()
        self.dropout = parts.dropout(drop_rate)
        self.shortcut = parts.shortcut(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(x) if self.pre_norm else x
        out = self.act(self.linear1(self.dropout(self.act(self.conv1(out)))))
        out = out + self.shortcut(x)
        return out if self.pre_norm else self.norm1(out)


class _TwoConvBlock(nn.Module):
    """What the blocks with two convolutions have in common."""

    norm_first = False

    def __init__(self, parts: _Parts, in_channels: int, out_channels: int,
                 drop_rate: float) -> None:
        super().__init__()
        self.conv1 = parts.conv(in_channels, out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.norm1 = parts.norm(in_channels if self.norm_first else out_channels)
        self.norm2 = parts.norm(out_channels)
        self.act = parts.act()
        self.dropout = parts.dropout(drop_rate)
        self.shortcut = parts.shortcut(in_channels, out_channels)


class ResNetBlock(_TwoConvBlock):
    """conv, norm, act, dropout, conv, norm, + shortcut, act."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.act(self.norm1(self.conv1(x))))
        return self.act(self.norm2(self.conv2(out)) + self.shortcut(x))


class PreActBlock(_TwoConvBlock):
    """norm, act, conv, dropout, norm, act, conv, + shortcut."""

    norm_first = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.conv1(self.act(self.norm1(x))))
        return self.conv2(self.act(self.norm2(out))) + self.shortcut(x)


class TCNBlock(_TwoConvBlock):
    """Twice conv, norm, act, dropout; + shortcut, act."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.act(self.norm1(self.conv1(x))))
        out = self.dropout(self.act(self.norm2(self.conv2(out))))
        return self.act(out + self.shortcut(x))


_BLOCKS = dict(s4=S4Block, resnet=ResNetBlock, preact=PreActBlock, tcn=TCNBlock)


@MODELS.register_module()
class CCNN(BaseModule):
    """Continuous CNN for sequences [B, C, L], images [B, C, H, W] and volumes.

    From "Modelling Long Range Dependencies in N-D: From Task-Specific to a General Purpose CNN",
    arXiv 2206.03398. A continuous convolution, norm and activation, then residual blocks; the
    resolution is kept throughout unless ``pools`` says otherwise. The published networks are
    CCNN-4,140 (4 blocks, 140 channels, kernel network of width 32) and CCNN-6,380 (width 64).

    Args:
        in_channels (int): Channels of the input. Defaults to 3.
        channels (int): Width. Defaults to 140.
        num_blocks (int): Residual blocks. Defaults to 4.
        conv_cfg (dict): A continuous convolution, which also says over how many axes the
            network runs. Defaults to ``dict(type='SeparableFlexConv2d', kernel_size=33)``.
        block (str): 's4', 'resnet', 'preact' or 'tcn'. Defaults to 's4'.
        pre_norm (bool): Whether 's4' blocks normalise before the convolution; then one more norm
            follows the last block. Defaults to True.
        width_factors (Sequence[float], optional): Width of each block in units of ``channels``.
            Defaults to None: all 1.
        pools (Sequence[int]): Blocks (from 0) behind which a max-pool follows. Defaults to ().
        pool_size (int): Side and stride of those. Defaults to 2.
        drop_rate (float): Dropout in the blocks. Defaults to 0.
        input_drop_rate (float): Dropout of single input values. Defaults to 0.
        drop_type (str): 'channel' drops whole channels in the blocks, 'element' single values.
            Defaults to 'channel'.
        norm_cfg (dict, optional): Norm; 'BN' is the one for the number of axes, None leaves the
            norms out. Defaults to BN.
        act_cfg (dict): Activation. Defaults to GELU.
        init_cfg (dict, optional): Initialisation. Defaults to None.

    Returns one feature map in a tuple, [B, channels, *size].
    """

    def __init__(self,
                 in_channels: int = 3,
                 channels: int = 140,
                 num_blocks: int = 4,
                 conv_cfg: dict = dict(type='SeparableFlexConv2d', kernel_size=33),
                 block: str = 's4',
                 pre_norm: bool = True,
                 width_factors: Optional[Sequence[float]] = None,
                 pools: Sequence[int] = (),
                 pool_size: int = 2,
                 drop_rate: float = 0.,
                 input_drop_rate: float = 0.,
                 drop_type: str = 'channel',
                 norm_cfg: Optional[dict] = dict(type='BN'),
                 act_cfg: dict = dict(type='GELU'),
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        if block not in _BLOCKS:
            raise ValueError(f'block must be one of {", ".join(_BLOCKS)}, got {block!r}')
        if not pre_norm and block != 's4':
            raise ValueError(f"pre_norm=False exists for 's4' blocks only, got block {block!r}")
        if drop_type not in ('channel', 'element'):
            raise ValueError(f"drop_type must be 'channel' or 'element', got {drop_type!r}")
        if num_blocks < 0:
            raise ValueError(f'num_blocks must not be negative, got {num_blocks}')
        width_factors = (1, ) * num_blocks if width_factors is None else width_factors
        if len(width_factors) != num_blocks:
            raise ValueError(f'width_factors must have {num_blocks} entries, one a block, got '
                             f'{list(width_factors)}')
        if any(not 0 <= i < num_blocks for i in pools):
            raise ValueError(f'pools must be block numbers below {num_blocks}, got {list(pools)}')
        parts = _Parts(conv_cfg, norm_cfg, act_cfg, drop_type)
        self.input_dropout = nn.Dropout(input_drop_rate)
        self.conv1 = parts.conv(in_channels, channels)
        self.norm1 = parts.norm(channels)
        self.act = parts.act()
        block_args = dict(pre_norm=pre_norm) if block == 's4' else {}
        widths = [channels] + [int(channels * factor) for factor in width_factors]
        self.blocks = nn.ModuleList(
            _BLOCKS[block](parts, before, after, drop_rate, **block_args)
            for before, after in zip(widths, widths[1:]))
        self.pools = frozenset(pools)
        self.pool = _MAX_POOL[parts.dim](pool_size)
        has_out_norm = block == 's4' and pre_norm
        self.out_norm = parts.norm(widths[-1]) if has_out_norm else nn.Identity()
        self.out_channels = widths[-1]

    def forward(self, x: Tensor) -> Tuple[Tensor]:
        x = self.act(self.norm1(self.conv1(self.input_dropout(x))))
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.pools:
                x = self.pool(x)
        return (self.out_norm(x), )
