"""A convolution whose output channels are split into levels with different kernels."""
from fractions import Fraction
from typing import Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmcontext.layers._geometry import ContextLayer
from mmcontext.layers._modules import has_global_hooks, is_touched
from mmcontext.layers.conv_norm import run_together
from mmcontext.ops.arguments import IntPair, per_axis
from mmcontext.ops.grouped_conv import conv_pyramid


def split_channels(layer: str, out_channels: int, levels: int,
                   shares: Dict[int, Tuple[Fraction, ...]]) -> Tuple[int, ...]:
    """Output channels per level, in the proportions published for that number of levels."""
    if levels not in shares:
        raise ValueError(f'levels of {layer} must be one of {sorted(shares)} unless out_splits '
                         f'is given, got {levels!r}')
    splits = [share * out_channels for share in shares[levels]]
    if any(split.denominator != 1 for split in splits):
        raise ValueError(f'out_channels of {layer} with {levels} levels must be divisible by '
                         f'{max(share.denominator for share in shares[levels])}, '
                         f'got {out_channels}')
    return tuple(int(split) for split in splits)


class PyramidConv2d(ContextLayer):
    """Parallel convolutions of one input, concatenated over channels.

    All levels have the same output size: a level whose kernel reaches further is padded more.

    Args: as :class:`ContextLayer`, and
        bias: Whether every level has a bias.
        out_splits: Output channels of each level; they add up to ``out_channels``.
        kernel_sizes: Kernel size of each level; the first is ``kernel_size``.
        dilations: Dilation of each level, in multiples of ``dilation``.
        level_groups: Groups of each level.
    """

    def __init__(self, in_channels: int, out_channels: Optional[int], kernel_size: IntPair,
                 stride: IntPair, padding: Optional[IntPair], dilation: IntPair, groups: int,
                 bias: bool, out_splits: Sequence[int], kernel_sizes: Sequence[IntPair],
                 dilations: Sequence[int], level_groups: Sequence[int],
                 kernel_size_override: Optional[IntPair] = None) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, kernel_size_override)
        name = type(self).__name__
        lengths = {'out_splits': len(out_splits), 'kernel sizes': len(kernel_sizes),
                   'dilations': len(dilations), 'groups': len(level_groups)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'{name} needs one value per level for each of its lists, got '
                             + ', '.join(f'{count} {key}' for key, count in lengths.items()))
        if sum(out_splits) != self.out_channels or min(out_splits) < 1:
            raise ValueError(f'out_splits of {name} must be positive and add up to out_channels='
                             f'{self.out_channels}, got {tuple(out_splits)}')
        self.convs = nn.ModuleList()
        for split, size, scale, level_group in zip(out_splits, kernel_sizes, dilations,
                                                   level_groups):
            if in_channels % level_group or split % level_group:
                raise ValueError(f'{name}: {in_channels} input and {split} output channels of a '
                                 f'level are not both divisible by its {level_group} groups')
            size = per_axis(f'kernel_size of {name}', size, 2, 1)
            level_dilation = tuple(scale * d for d in self.dilation)
            reach = [d * (k - 1) for d, k in zip(level_dilation, size)]
            base_reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
            if any((r - b) % 2 for r, b in zip(reach, base_reach)):
                raise ValueError(f'{name}: a level with kernel {size} and dilation '
                                 f'{level_dilation} cannot be centred on one with kernel '
                                 f'{self.kernel_size} and dilation {self.dilation}')
            level_padding = tuple(p + (r - b) // 2
                                  for p, r, b in zip(self.padding, reach, base_reach))
            if min(level_padding) < 0:
                raise ValueError(f'{name}: a level with kernel {size} and dilation '
                                 f'{level_dilation} would need padding {level_padding}')
            self.convs.append(
                nn.Conv2d(in_channels, split, size, stride=self.stride, padding=level_padding,
                          dilation=level_dilation, groups=level_group, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, Ho, Wo]."""
        if len(self.convs) == 1:
            return run_together(x, self.convs[0])
        y = self._side_by_side(x)
        if y is not None:
            return y
        return torch.cat([run_together(x, conv) for conv in self.convs], dim=-3)

    def _side_by_side(self, x: Tensor) -> Optional[Tensor]:
        """All levels by one operator on a GPU; None if the convolutions have to be called."""
        if type(x) is not Tensor or has_global_hooks():
            return None
        levels = []
        for conv in self.convs:
            if (type(conv) is not nn.Conv2d or conv.padding_mode != 'zeros' or is_touched(conv)):
                return None
            parameters = conv._parameters
            levels.append((parameters['weight'], parameters['bias'], conv.stride, conv.padding,
                           conv.dilation, conv.groups))
        return conv_pyramid(x, levels)
