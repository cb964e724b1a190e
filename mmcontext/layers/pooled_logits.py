"""The logits of channel gates, computed from pooled features."""
from typing import Optional

import torch
from torch import Tensor, nn

from mmcontext.layers._modules import is_plain, is_touched
from mmcontext.layers.conv_norm import ACTIVATIONS, ConvNormAct, is_batch_norm
from mmcontext.ops.batch_norm_act import switch
from mmcontext.ops.channel_gate import gate_by_means


def _is_product(conv: nn.Module) -> bool:
    """Whether of one pixel it computes the product with a matrix in float32."""
    return (is_plain(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.padding == (0, 0)
            and conv.groups == 1 and conv._parameters['weight'].dtype is torch.float32)


class PooledLogits(nn.Sequential):
    """Convolution, norm, activation and another convolution of pooled features.

    On a GPU means in float32 are processed in float32, also under autocast: so few values take no
    time, while every cast and every bias would be a launch (``csrc/pooled_logits.cpp``).

    Args:
        first: Convolution, norm and activation.
        last: Convolution.
    """

    def __init__(self, first: ConvNormAct, last: nn.Conv2d) -> None:
        super().__init__(first, last)

    def takes_float32(self) -> bool:
        """Whether :meth:`forward` can process means in float32 in one call."""
        if len(self._modules) != 2:
            return False
        first, last = self._modules.values()
        if not (_is_product(last) and is_plain(first, ConvNormAct) and len(first._modules) == 3):
            return False
        conv, norm, act = first._modules.values()
        return (_is_product(conv) and is_batch_norm(norm) and not is_touched(norm)
                and norm.momentum is not None and type(act) in ACTIVATIONS
                and not is_touched(act))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, 1, 1] -> [B, D, 1, 1]."""
        if (type(x) is Tensor and x.dtype is torch.float32 and switch.may_serve(x, None)
                and self.takes_float32()):
            first, last = self._modules.values()
            conv, norm, act = first._modules.values()
            affine, state = norm._parameters, norm._buffers
            mean = state['running_mean']
            logits = torch.ops.mmcontext_native.pooled_logits(
                x, conv._parameters['weight'], conv._parameters['bias'], affine['weight'],
                affine['bias'], mean, state['running_var'], state['num_batches_tracked'],
                norm.training or mean is None, norm.momentum, norm.eps, ACTIVATIONS[type(act)],
                last._parameters['weight'], last._parameters['bias'], '')
            if logits is not None:
                return logits
        return super().forward(x)


def gate_by_logits(x: Tensor, logits: nn.Module, other: Optional[Tensor] = None) -> Tensor:
    """:func:`gate_by_means`, with means in float32 where the module takes them.

    Args: as :func:`gate_by_means`.
    """
    exact = (type(logits) is PooledLogits and switch.is_on_gpu(x) and logits.takes_float32())
    return gate_by_means(x, logits, other, exact=exact)
