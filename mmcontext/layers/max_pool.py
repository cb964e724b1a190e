import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcontext.ops.tracing import is_compiling, is_recording, is_symbolic


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``, faster at inference on the CPU, with the same results.

    torch's CPU kernel is vectorised over channels, and only for channels-last tensors: with the
    conversion there and back it takes a fifth of the time of the other kernel. The backward pass
    would not gain from it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, Ho, Wo]."""
        if (is_symbolic(x) or x.device.type != 'cpu'
                or (torch.is_grad_enabled() and x.requires_grad) or not x.is_contiguous()
                or is_compiling() or is_recording()):
            return super().forward(x)
        turned = x.contiguous(memory_format=torch.channels_last)
        return F.max_pool2d(turned, self.kernel_size, self.stride, self.padding, self.dilation,
                            self.ceil_mode).contiguous()
