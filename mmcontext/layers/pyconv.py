from fractions import Fraction
from typing import Optional, Sequence, Union

from mmcontext.layers._pyramid import PyramidConv2d, split_channels
from mmcontext.ops.arguments import IntPair
from mmcontext.registry import MODELS

_HALF, _QUARTER = Fraction(1, 2), Fraction(1, 4)
_SHARES = {
    1: (Fraction(1), ),
    2: (_HALF, _HALF),
    3: (_QUARTER, _QUARTER, _HALF),
    4: (_QUARTER, ) * 4,
}
_GROUPS = (1, 4, 8, 16)


@MODELS.register_module()
class PyConv2d(PyramidConv2d):
    """Pyramidal convolution: output channels split into levels of growing kernel and groups.

    From "Pyramidal Convolution: Rethinking Convolutional Neural Networks for Visual
    Recognition", https://arxiv.org/abs/2006.11538. A drop-in replacement for ``Conv2d``, also as
    ``conv_cfg`` and as ``dcn``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None for ``in_channels``.
        kernel_size: Kernel size of the first level, growing by 2 from level to level; or a list
            with the size of every level. Defaults to 3.
        stride: Step in input pixels. Defaults to 1.
        padding: Zeros on each side of the first level, more for the larger kernels; None
            keeps the size at stride 1.
        dilation: Dilation of every level. Defaults to 1.
        groups: Groups per level, or one number for all; None or 1 for the published
            1, 4, 8, 16.
        bias: Whether to add a bias. Defaults to False.
        levels: Number of levels, 1 to 4, if neither ``kernel_size`` nor ``groups`` is a list.
            Defaults to 4.
        out_splits: Output channels per level; None for the published proportions.
        kernel_size_override: Kernel size (or list) used instead of ``kernel_size``, for callers
            that dictate it; the output size does not change.

    Shape: [B, in_channels, H, W] -> [B, out_channels, Ho, Wo], sizes as for ``Conv2d``.

    Raises:
        ValueError: Channels do not divide, or the levels do not add up.
    """

    def __init__(self, in_channels: int, out_channels: Optional[int] = None,
                 kernel_size: Union[int, Sequence[int]] = 3, stride: IntPair = 1,
                 padding: Optional[IntPair] = None, dilation: IntPair = 1,
                 groups: Union[int, Sequence[int], None] = None, bias: bool = False,
                 levels: int = 4, out_splits: Optional[Sequence[int]] = None,
                 kernel_size_override: Union[int, Sequence[int], None] = None) -> None:
        sizes = kernel_size if kernel_size_override is None else kernel_size_override
        for name, given in (('kernel_size', sizes), ('groups', groups), ('out_splits', out_splits)):
            if isinstance(given, Sequence):
                levels = len(given)
            elif not (given is None or isinstance(given, int)):
                raise ValueError(f'{name} of PyConv2d must be an int or a list with an entry per '
                                 f'level, got {given!r}')
        if isinstance(sizes, int):
            sizes = [sizes + 2 * level for level in range(levels)]
        if groups is None or groups == 1:
            if levels > len(_GROUPS):
                raise ValueError(f'groups of PyConv2d must be given for {levels} levels; '
                                 f'defaults exist for up to {len(_GROUPS)}')
            groups = _GROUPS[:levels]
        elif isinstance(groups, int):
            groups = [groups] * levels
        if out_splits is None:
            width = in_channels if out_channels is None else out_channels
            out_splits = split_channels('PyConv2d', width, levels, _SHARES)
        first = kernel_size if isinstance(kernel_size, int) else kernel_size[0]
        super().__init__(in_channels, out_channels, first, stride, padding, dilation, 1, bias,
                         out_splits, sizes, [1] * levels, groups,
                         None if kernel_size_override is None else sizes[0])
