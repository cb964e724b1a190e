from torch import Tensor, nn

from mmcontext.ops.avg_pool import avg_pool2d


class AvgPool2d(nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` through :func:`mmcontext.ops.avg_pool.avg_pool2d`: the same results.

    Args: as ``torch.nn.AvgPool2d``, without ``divisor_override``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, Ho, Wo]."""
        return avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode,
                          self.count_include_pad)
