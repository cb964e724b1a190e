from fractions import Fraction
from typing import Optional, Sequence

from mmcontext.layers._pyramid import PyramidConv2d, split_channels
from mmcontext.ops.arguments import IntPair
from mmcontext.registry import MODELS

_HALF, _QUARTER, _EIGHTH = Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)
_SHARES = {
    1: (Fraction(1), ),
    2: (_HALF, _HALF),
    3: (_HALF, _QUARTER, _QUARTER),
    4: (_QUARTER, ) * 4,
    5: (_QUARTER, ) * 3 + (_EIGHTH, ) * 2,
}


@MODELS.register_module()
class CoConv2d(PyramidConv2d):
    """Contextual convolution: output channels split into levels of growing dilation.

    From "Contextual Convolutional Neural Networks", https://arxiv.org/abs/2108.07387.
    A drop-in replacement for ``Conv2d``, also as ``conv_cfg`` and as ``dcn``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None for ``in_channels``.
        kernel_size: Kernel size of every level. Defaults to 3.
        stride: Step in input pixels. Defaults to 1.
        padding: Zeros on each side of the first level, more for the wider ones; None keeps
            the size at stride 1.
        dilation: Dilation of the first level; the others have multiples of it.
        groups: Groups of every level. Defaults to 1.
        bias: Whether to add a bias. Defaults to False.
        levels: Number of levels, 1 to 5, if ``out_splits`` is None. Defaults to 4.
        out_splits: Output channels per level; None for the published proportions.
        dilations: Dilation per level as multiples of ``dilation``; None for 1, 2, 3, ...
        kernel_size_override: Kernel size used instead of ``kernel_size``, for callers that
            dictate it; the output size does not change.

    Shape: [B, in_channels, H, W] -> [B, out_channels, Ho, Wo], sizes as for ``Conv2d``.

    Raises:
        ValueError: Channels do not divide, or the levels do not add up.
    """

    def __init__(self, in_channels: int, out_channels: Optional[int] = None,
                 kernel_size: IntPair = 3, stride: IntPair = 1,
                 padding: Optional[IntPair] = None, dilation: IntPair = 1, groups: int = 1,
                 bias: bool = False, levels: int = 4,
                 out_splits: Optional[Sequence[int]] = None,
                 dilations: Optional[Sequence[int]] = None,
                 kernel_size_override: Optional[IntPair] = None) -> None:
        if out_splits is None:
            width = in_channels if out_channels is None else out_channels
            out_splits = split_channels('CoConv2d', width,
                                        levels if dilations is None else len(dilations), _SHARES)
        count = len(out_splits)
        size = kernel_size if kernel_size_override is None else kernel_size_override
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, bias, out_splits, [size] * count,
                         range(1, count + 1) if dilations is None else dilations,
                         [groups] * count, kernel_size_override)
