"""Arguments and attributes that all layers share with ``torch.nn.Conv2d``."""
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmcontext.layers._modules import call_or_pass
from mmcontext.ops.arguments import IntPair, per_axis
from mmcontext.ops.tracing import is_symbolic


def same_padding(kernel_size: Sequence[int], dilation: Sequence[int]) -> Tuple[int, ...]:
    """Padding that keeps the size at stride 1 (for even kernels, one row less)."""
    return tuple([d * (k - 1) // 2 for k, d in zip(kernel_size, dilation)])


def padding_for(kernel_size: Sequence[int], override: Sequence[int], padding: Sequence[int],
                dilation: Sequence[int]) -> Tuple[int, ...]:
    """Padding with which a kernel of another size gives the output size that the caller expects.

    Args:
        kernel_size: The caller's kernel size.
        override: The kernel size used instead.
        padding: The caller's padding, meant for ``kernel_size``.
        dilation: Distance between two taps.

    Raises:
        ValueError: The result would be negative.
    """
    widened = tuple([p + w - s for p, w, s in zip(
        padding, same_padding(override, dilation), same_padding(kernel_size, dilation))])
    if min(widened) < 0:
        raise ValueError(f'kernel_size_override={tuple(override)} needs a negative padding in '
                         f'place of kernel_size={tuple(kernel_size)} with padding='
                         f'{tuple(padding)}')
    return widened


class ContextLayer(nn.Module):
    """Base of the layers: the geometry that callers of ``Conv2d`` read and pass.

    ``ConvModule``, the ``dcn=`` option of mmdet's and mmseg's ResNet and ``conv_cfg`` call the
    constructor of a layer as they would call that of ``Conv2d``, with their own kernel size.
    ``kernel_size_override`` replaces it, and the padding grows with it so that the output size is
    still what the caller expects.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None for ``in_channels``.
        kernel_size: Kernel height and width.
        stride: Step in input pixels.
        padding: Zero rows and columns on each side; None keeps the size at stride 1.
        dilation: Distance between two taps.
        groups: As in ``Conv2d``; each layer documents what values other than 1 mean.
        kernel_size_override: Kernel size used instead of ``kernel_size``.
    """

    # What ConvModule reads from a convolution.
    transposed = False
    output_padding = (0, 0)
    padding_mode = 'zeros'
    # True if the layer ends in a norm and an activation of its own.
    normalised = False

    def __init__(self, in_channels: int, out_channels: Optional[int], kernel_size: IntPair,
                 stride: IntPair, padding: Optional[IntPair], dilation: IntPair, groups: int = 1,
                 kernel_size_override: Optional[IntPair] = None) -> None:
        super().__init__()
        for name, value in (('in_channels', in_channels), ('out_channels', out_channels),
                            ('groups', groups)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f'{name} of {type(self).__name__} must be a positive integer, '
                                 f'got {value!r}')
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.kernel_size = per_axis('kernel_size', kernel_size, 2, 1)
        self.stride = per_axis('stride', stride, 2, 1)
        self.dilation = per_axis('dilation', dilation, 2, 1)
        self.groups = groups
        same = same_padding(self.kernel_size, self.dilation)
        self.padding = same if padding is None else per_axis('padding', padding, 2, 0)
        if kernel_size_override is not None:
            override = per_axis('kernel_size_override', kernel_size_override, 2, 1)
            self.padding = padding_for(self.kernel_size, override, self.padding, self.dilation)
            self.kernel_size = override

    def check_input(self, x: Tensor) -> None:
        """Raise unless the input is [B, in_channels, H, W]."""
        if type(x) is Tensor and x.dim() == 4 and x.shape[1] == self.in_channels:
            return
        if not is_symbolic(x) and (x.dim() != 4 or x.shape[1] != self.in_channels):
            raise ValueError(f'the input of {type(self).__name__} must be [B, {self.in_channels}, '
                             f'H, W], got shape {tuple(x.shape)}')

    def extra_repr(self) -> str:
        return (f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, '
                f'stride={self.stride}, padding={self.padding}, dilation={self.dilation}')


class DynamicKernelLayer(ContextLayer):
    """Base of the layers whose kernels are computed from the input.

    Such kernels act within a channel, so a change of width needs a 1x1 convolution after them
    (``projection``), and ``groups`` has no meaning.

    Args: as :class:`ContextLayer`, and
        bias: Whether to add a learnable bias to the output.
    """

    def __init__(self, in_channels: int, out_channels: Optional[int], kernel_size: IntPair,
                 stride: IntPair, padding: Optional[IntPair], dilation: IntPair, groups: int,
                 bias: bool, kernel_size_override: Optional[IntPair]) -> None:
        if groups != 1:
            raise ValueError(f'groups of {type(self).__name__} must be 1 (its kernels are '
                             f'already shared within channel groups), got {groups!r}')
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, kernel_size_override)
        changes_width = self.out_channels != in_channels
        self.projection = nn.Conv2d(in_channels, self.out_channels, 1,
                                    bias=False) if changes_width else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(self.out_channels)) if bias else None

    def finish(self, y: Tensor) -> Tensor:
        """Aggregated features [B, in_channels, Ho, Wo] -> output [B, out_channels, Ho, Wo]."""
        y = call_or_pass(self._modules['projection'], y)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1).to(y.dtype)
