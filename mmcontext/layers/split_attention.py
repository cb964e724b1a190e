from typing import Optional

from torch import Tensor, nn

from mmcontext.layers._geometry import ContextLayer
from mmcontext.layers.conv_norm import conv_norm_act
from mmcontext.layers.pooled_logits import gate_by_logits
from mmcontext.ops.arguments import IntPair
from mmcontext.registry import MODELS


# The second name is that of version 0.1.
@MODELS.register_module(name=['SplitAttention2d', 'SplitAttentionConv2d'])
class SplitAttention2d(ContextLayer):
    """Split-attention convolution of radix 1: a convolution that gates its own channels.

    From "ResNeSt: Split-Attention Networks", https://arxiv.org/abs/2004.08955; SE-CoTNetD uses
    it, with swish, where it has no contextual transformer layer. Replaces a convolution together
    with its norm and activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; None for ``in_channels``.
        kernel_size: Kernel size. Defaults to 3.
        stride: Step in input pixels. Defaults to 1.
        padding: Zeros on each side; None keeps the size at stride 1.
        dilation: Distance between two taps. Defaults to 1.
        groups: Groups of the convolution. Defaults to 1.
        bias: Whether the convolution has a bias. Defaults to False.
        norm_cfg: Norm of the convolution and of the gate, see
            :func:`mmcontext.layers.norms.fit_norm_cfg`. Defaults to BN.

    Shape: [B, in_channels, H, W] -> [B, out_channels, Ho, Wo], sizes as for ``Conv2d``.
    """

    normalised = True

    def __init__(self, in_channels: int, out_channels: Optional[int] = None,
                 kernel_size: IntPair = 3, stride: IntPair = 1,
                 padding: Optional[IntPair] = None, dilation: IntPair = 1, groups: int = 1,
                 bias: bool = False, norm_cfg: Optional[dict] = None) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups)
        swish = dict(type='SiLU')
        hidden = max(in_channels // 4, 32)
        self.conv = conv_norm_act(in_channels, self.out_channels, self.kernel_size, norm_cfg,
                                  swish, stride=self.stride, padding=self.padding,
                                  dilation=self.dilation, groups=groups, bias=bias)
        self.gate = nn.Sequential(
            conv_norm_act(self.out_channels, hidden, 1, norm_cfg, swish),
            nn.Conv2d(hidden, self.out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, Ho, Wo]."""
        self.check_input(x)
        return gate_by_logits(self.conv(x), self.gate)
