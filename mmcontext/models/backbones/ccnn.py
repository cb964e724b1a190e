"""The continuous CNN: one network for sequences, images and volumes."""
from typing import List, Optional, Sequence, Tuple, Union

import torch.nn as nn
import torch.utils.checkpoint as checkpoint
from mmcv.cnn import build_activation_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor

from mmcontext.layers.norms import build_norm, normalise
from mmcontext.models.backbones.freezable import FreezableBackbone
from mmcontext.ops.tracing import is_symbolic
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
        return build_norm(cfg, channels)

    def drop_path(self, rate: float) -> nn.Module:
        return DropPath(rate) if rate > 0 else nn.Identity()

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
        drop_path_rate (float): Probability to drop the residual branch of a sample.
        pre_norm (bool): Whether the norm comes first. Defaults to True.
    """

    def __init__(self, parts: _Parts, in_channels: int, out_channels: int, drop_rate: float,
                 drop_path_rate: float, pre_norm: bool = True) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.conv1 = parts.conv(in_channels, out_channels)
        self.norm1 = parts.norm(in_channels if pre_norm else out_channels)
        self.linear1 = parts.pointwise(out_channels, out_channels)
        self.act = parts.act()
        self.dropout = parts.dropout(drop_rate)
        self.shortcut = parts.shortcut(in_channels, out_channels)
        self.drop_path = parts.drop_path(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        out = normalise(self.norm1, x) if self.pre_norm else x
        out = self.act(self.linear1(self.dropout(self.act(self.conv1(out)))))
        out = self.drop_path(out) + self.shortcut(x)
        return out if self.pre_norm else normalise(self.norm1, out)


class _TwoConvBlock(nn.Module):
    """Base of the blocks with two convolutions."""

    norm_first = False

    def __init__(self, parts: _Parts, in_channels: int, out_channels: int, drop_rate: float,
                 drop_path_rate: float) -> None:
        super().__init__()
        self.conv1 = parts.conv(in_channels, out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.norm1 = parts.norm(in_channels if self.norm_first else out_channels)
        self.norm2 = parts.norm(out_channels)
        self.act = parts.act()
        self.dropout = parts.dropout(drop_rate)
        self.shortcut = parts.shortcut(in_channels, out_channels)
        self.drop_path = parts.drop_path(drop_path_rate)


class ResNetBlock(_TwoConvBlock):
    """conv, norm, act, dropout, conv, norm, + shortcut, act."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.act(normalise(self.norm1, self.conv1(x))))
        out = self.drop_path(normalise(self.norm2, self.conv2(out)))
        return self.act(out + self.shortcut(x))


class PreActBlock(_TwoConvBlock):
    """norm, act, conv, dropout, norm, act, conv, + shortcut."""

    norm_first = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.conv1(self.act(normalise(self.norm1, x))))
        out = self.conv2(self.act(normalise(self.norm2, out)))
        return self.drop_path(out) + self.shortcut(x)


class TCNBlock(_TwoConvBlock):
    """Twice conv, norm, act, dropout; + shortcut, act."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.act(normalise(self.norm1, self.conv1(x))))
        out = self.dropout(self.act(normalise(self.norm2, self.conv2(out))))
        return self.act(self.drop_path(out) + self.shortcut(x))


_BLOCKS = dict(s4=S4Block, resnet=ResNetBlock, preact=PreActBlock, tcn=TCNBlock)


@MODELS.register_module()
class CCNN(FreezableBackbone):
    """Continuous CNN for sequences [B, C, L], images [B, C, H, W] and volumes.

    From "Modelling Long Range Dependencies in N-D: From Task-Specific to a General Purpose CNN",
    arXiv 2206.03398. A continuous convolution, norm and activation, then residual blocks; the
    resolution is kept throughout unless ``pools`` says otherwise. The published networks are
    CCNN-4,140 (4 blocks, 140 channels, kernel network of width 32) and CCNN-6,380 (width 64).

    Args:
        in_channels (int): Channels of the input. Defaults to 3.
        channels (int): Width. Defaults to 140.
        num_blocks (int): Residual blocks. Defaults to 4.
        conv_cfg (dict): A continuous convolution, which also determines the number of axes.
            Defaults to ``dict(type='SeparableFlexConv2d', kernel_size=33)``.
        block (str): 's4', 'resnet', 'preact' or 'tcn'. Defaults to 's4'.
        pre_norm (bool): Whether 's4' blocks normalise before the convolution; then one more norm
            follows the last block. Defaults to True.
        width_factors (Sequence[float], optional): Width of each block in units of ``channels``.
            Defaults to None: all 1.
        pools (Sequence[int]): Blocks (from 0) that are followed by a max-pool. Defaults to ().
        pool_size (int): Side and stride of these. Defaults to 2.
        drop_rate (float): Dropout in the blocks. Defaults to 0.
        input_drop_rate (float): Dropout of single input values. Defaults to 0.
        drop_type (str): 'channel' drops whole channels in the blocks, 'element' single values.
            Defaults to 'channel'.
        norm_cfg (dict, optional): Norm; 'BN' is the one for the number of axes, None means no
            norms. Defaults to BN.
        act_cfg (dict): Activation. Defaults to GELU.
        drop_path_rate (float): Drop-path rate of the last block; it grows linearly from 0.
            Defaults to 0.
        out_indices (int | Sequence[int], optional): Blocks (from 0) whose output is returned,
            always the earliest first; the last norm comes only after the last block. Defaults
            to None: the last.
        frozen_stages (int): The first convolution with its norm and that many blocks are
            frozen (parameters and statistics); 0 is only the former, -1 (default) nothing.
        norm_eval (bool): Whether norms stay in eval mode in training. Defaults to False.
        with_cp (bool): Whether to recompute blocks in backward to save memory. Defaults to False.
        init_cfg (dict, optional): Initialisation. Defaults to None.

    Returns a tuple of feature maps, one per ``out_indices``: [B, channels, *size] each.
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
                 drop_path_rate: float = 0.,
                 out_indices: Union[int, Sequence[int], None] = None,
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
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
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate!r}')
        if frozen_stages not in range(-1, num_blocks + 1):
            raise ValueError(f'frozen_stages must be -1 to {num_blocks}, got {frozen_stages!r}')
        if out_indices is None:
            out_indices = num_blocks - 1
        indices = (out_indices, ) if isinstance(out_indices, int) else tuple(out_indices)
        # Without blocks there is one output, that of the first convolution.
        if not indices or any(i not in range(min(num_blocks - 1, 0), num_blocks) for i in indices):
            raise ValueError(f'out_indices must be blocks 0 to {num_blocks - 1}, got '
                             f'{out_indices!r}')
        self.out_indices = indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        parts = _Parts(conv_cfg, norm_cfg, act_cfg, drop_type)
        self.input_dropout = nn.Dropout(input_drop_rate)
        self.conv1 = parts.conv(in_channels, channels)
        self.norm1 = parts.norm(channels)
        self.act = parts.act()
        block_args = dict(pre_norm=pre_norm) if block == 's4' else {}
        widths = [channels] + [int(channels * factor) for factor in width_factors]
        self.blocks = nn.ModuleList(
            _BLOCKS[block](parts, before, after, drop_rate,
                           drop_path_rate * index / max(num_blocks - 1, 1), **block_args)
            for index, (before, after) in enumerate(zip(widths, widths[1:])))
        self.pools = frozenset(pools)
        self.pool = _MAX_POOL[parts.dim](pool_size)
        has_out_norm = block == 's4' and pre_norm
        self.out_norm = parts.norm(widths[-1]) if has_out_norm else nn.Identity()
        self.out_channels = widths[-1]
        self._freeze_stages()

    def _stages(self) -> List[Sequence[nn.Module]]:
        return [(self.conv1, self.norm1), *((block, ) for block in self.blocks)]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """The layer to which a parameter belongs, for layer-wise learning rate decay.

        Called by mmpretrain's ``LearningRateDecayOptimWrapperConstructor``.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of the names of this backbone's parameters. Defaults to ''.

        Returns:
            tuple[int, int]: Its layer and the number of layers: 0 is the first convolution with
            its norm, then each block is one, and the last is everything after the blocks.
        """
        layers = len(self.blocks) + 2
        parts = param_name[len(prefix):].split('.')
        if not param_name.startswith(prefix) or parts[0] == 'out_norm':
            return layers - 1, layers
        return (int(parts[1]) + 1 if parts[0] == 'blocks' else 0), layers

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """[B, in_channels, *size] -> the feature maps."""
        x = self.act(normalise(self.norm1, self.conv1(self.input_dropout(x))))
        outputs = [] if self.blocks else [normalise(self.out_norm, x)]
        for i, block in enumerate(self.blocks):
            if self.with_cp and not is_symbolic(x) and x.requires_grad:
                x = checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i in self.pools:
                x = self.pool(x)
            if i in self.out_indices:
                is_last = i == len(self.blocks) - 1
                outputs.append(normalise(self.out_norm, x) if is_last else x)
        return tuple(outputs)
