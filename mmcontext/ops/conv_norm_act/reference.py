"""The operator as defined, in standard, differentiable torch: the oracle of the tests."""
from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.conv_norm_act.arguments import BatchNorm, Convolution, Norm
from mmcontext.ops.grouped_conv import grouped_conv2d

_ACTIVATE = {'none': lambda x: x, 'relu': F.relu, 'silu': F.silu}


def compose(x: Tensor, conv: Optional[Convolution], norm: Optional[Norm], activation: str,
            residual: Optional[Tensor]) -> Tensor:
    """``activation(norm(conv(x)) + residual)``, function by function.

    Args: as :func:`mmcontext.ops.conv_norm_act.conv_norm_act`.
    """
    if conv is not None:
        x = grouped_conv2d(x, *conv)
    if isinstance(norm, BatchNorm):
        x = F.batch_norm(x, norm.mean, norm.variance, norm.weight, norm.bias, eps=norm.eps)
    elif norm is not None:
        x = F.group_norm(x, *norm)
    if residual is not None:
        x = x + residual
    return _ACTIVATE[activation](x)
