"""The logits of channel gates, computed from pooled features."""
from typing import Optional

import torch
from torch import Tensor, nn

from mmcontext.layers._modules import is_plain, is_touched
from mmcontext.layers.conv_norm import (
    ACTIVATIONS,
    ConvNormAct,
    batch_norm_operands,
    is_batch_norm,
)
from mmcontext.ops.batch_norm_act import switch
from mmcontext.ops.channel_gate import gate_by_means


def _is_product(conv: nn.Module) -> bool:
    """Whether of one pixel it computes the product with a matrix in float32."""
    return (is_plain(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.padding == (0, 0)
            and conv.groups == 1 and conv._parameters['weight'].dtype is torch.float32)


def pooled_operands(logits: nn.Module) -> Optional[tuple]:
    """What ``csrc/pooled_logits.cpp`` needs of a ``Sequential`` of convolution with batch norm and
    activation, and another convolution; None if it is something else, or has been changed."""
    if not is_plain(logits, nn.Sequential) or len(logits._modules) != 2:
        return None
    first, last = logits._modules.values()
    if not (_is_product(last) and is_plain(first, ConvNormAct) and len(first._modules) == 3):
        return None
    conv, norm, act = first._modules.values()
    if not (_is_product(conv) and is_batch_norm(norm) and not is_touched(norm)
            and norm.momentum is not None and type(act) in ACTIVATIONS and not is_touched(act)):
        return None
    return (conv._parameters['weight'], conv._parameters['bias'], *batch_norm_operands(norm),
            ACTIVATIONS[type(act)], last._parameters['weight'], last._parameters['bias'])


def gate_by_logits(x: Tensor, logits: nn.Module, other: Optional[Tensor] = None) -> Tensor:
    """:func:`gate_by_means`, with logits in float32 by one call on a GPU, also under autocast.

    So few values take no time, while every cast and every bias would be a launch.

    Args: as :func:`gate_by_means`.
    """
    operands = pooled_operands(logits) if switch.may_serve(x, None) else None
    if operands is None:
        return gate_by_means(x, logits, other)

    def in_one_call(means: Tensor) -> Tensor:
        y = None
        if means.dtype is torch.float32:
            y = torch.ops.mmcontext_native.pooled_logits(means, *operands, '')
        return logits(means) if y is None else y

    return gate_by_means(x, in_one_call, other, exact=True)
