import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcontext.ops.tracing import is_symbolic


class BlurPool2d(nn.Module):
    """Anti-aliased subsampling: a fixed 3x3 binomial filter per channel, then the stride.

    From "Making Convolutional Networks Shift-Invariant Again",
    https://arxiv.org/abs/1904.11486. The border is reflected (repeated where a side is one
    pixel long).

    Args:
        stride: Step in input pixels.

    Shape: [B, C, H, W] -> [B, C, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        taps = torch.tensor([1., 2., 1.]) / 4
        self.register_buffer('filter', torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mode = 'reflect' if is_symbolic(x) or min(x.shape[-2:]) > 1 else 'replicate'
        channels = x.shape[1]
        weight = self.filter.to(x.dtype).expand(channels, 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight, stride=self.stride,
                        groups=channels)
