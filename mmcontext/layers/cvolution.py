from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcontext.layers._modules import is_plain
from mmcontext.layers.involution import Involution2d
from mmcontext.ops.arguments import IntPair
from mmcontext.ops.channel_gate import gate_by_convolution, grouped_product
from mmcontext.ops.conv_norm_act import spatial_mean
from mmcontext.ops.tracing import is_symbolic
from mmcontext.registry import MODELS

_GATE_KERNEL = 3


@MODELS.register_module()
class CVolution2d(Involution2d):
    """C-volution: involution of features whose channels are weighted by a global gate.

    From "C-volution: A Hybrid Operator for Visual Recognition", PRCV 2023. The gate is the
    spatial mean of a grouped 3x3 convolution of the input. A drop-in replacement for ``Conv2d``,
    also as ``conv_cfg`` and as ``dcn``.

    Args: as :class:`Involution2d`, and
        gate_groups: Groups of the gate's convolution; divides ``in_channels``. 16 in the
            published backbone (the default), 4 in its necks and heads.

    Shape: [B, in_channels, H, W] -> [B, out_channels, Ho, Wo], sizes as for ``Conv2d``.

    Raises:
        ValueError: ``in_channels`` is not divisible as required, or (with kernels of side 1) an
            input is smaller than the kernel of the gate's convolution.
    """

    _reduce_bias = True

    def __init__(self, in_channels: int, out_channels: Optional[int] = None,
                 kernel_size: IntPair = 7, stride: IntPair = 1,
                 padding: Optional[IntPair] = None, dilation: IntPair = 1, groups: int = 1,
                 bias: bool = False, gate_groups: int = 16, **kwargs) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, bias, **kwargs)
        if not isinstance(gate_groups, int) or gate_groups < 1 or in_channels % gate_groups:
            raise ValueError(f'in_channels={in_channels} of CVolution2d is not divisible by '
                             f'gate_groups={gate_groups!r}')
        self.gate_padding = tuple(k // 2 for k in self.kernel_size)
        self.gate = nn.Conv2d(in_channels, in_channels, _GATE_KERNEL, padding=self.gate_padding,
                              groups=gate_groups, bias=False)

    def _gate_by_sum(self, x: Tensor) -> bool:
        """Whether every tap of the gate's convolution meets every pixel once, so that its mean is
        a matrix product with the sum of x: the same result for one sum over the map."""
        if min(self.gate_padding) < _GATE_KERNEL - 1 and not is_symbolic(x):
            least = tuple(_GATE_KERNEL - 2 * pad for pad in self.gate_padding)
            if any(size < wanted for size, wanted in zip(x.shape[-2:], least)):
                raise ValueError(f'the input of CVolution2d must be at least {least} for '
                                 f'kernel_size {self.kernel_size}, got shape {tuple(x.shape)}')
        return (min(self.gate_padding) >= _GATE_KERNEL - 1 and not is_symbolic(x)
                and is_plain(self.gate, nn.Conv2d))

    def _gate_pixels(self, x: Tensor) -> int:
        """Number of output pixels of the gate's convolution."""
        (rows, cols), (pad_h, pad_w) = x.shape[-2:], self.gate_padding
        return (rows + 2 * pad_h - _GATE_KERNEL + 1) * (cols + 2 * pad_w - _GATE_KERNEL + 1)

    def gate_values(self, x: Tensor) -> Tensor:
        """The gate [B, in_channels, 1, 1]: mean of the padded convolution, border included."""
        if not self._gate_by_sum(x):
            return spatial_mean(self.gate(x))
        if torch.jit.is_tracing():
            # A trace would make the sizes constants. Padding with zeros gives the same mean.
            rows, cols = (pad - _GATE_KERNEL // 2 for pad in self.gate_padding)
            total = spatial_mean(F.pad(x, (cols, cols, rows, rows))).flatten(1)
        else:
            total = x.sum(dim=(2, 3)) / self._gate_pixels(x)
        return grouped_product(total, self.gate.weight, self.gate.groups)

    def values(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or not self._gate_by_sum(x):
            return x * self.gate_values(x)
        return gate_by_convolution(x, self.gate.weight, self.gate.groups, self._gate_pixels(x))
