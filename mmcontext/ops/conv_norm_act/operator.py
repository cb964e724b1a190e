"""The registered operator: its schema and its shape function.

The compiled library implements it for float32 maps on the CPU (``csrc/conv_norm_act.cpp``),
without a derivative. Without the library it is the reference.
"""
from typing import Optional

import torch
from torch import Tensor

from mmcontext.ops.conv_norm_act.arguments import BatchNorm, Convolution, GroupNorm, Norm
from mmcontext.ops.conv_norm_act.reference import compose
from mmcontext.ops.local_aggregation.operators import LIBRARY, register_fake
from mmcontext.ops.native_library import UNAVAILABLE

LIBRARY.define(
    'conv_norm_act(Tensor x, Tensor? weight, Tensor? bias, int[] stride, int[] padding, '
    'int[] dilation, int groups, Tensor? mean, Tensor? variance, Tensor? norm_weight, '
    'Tensor? norm_bias, float eps, int norm_groups, Tensor? residual, str activation, '
    'str method) -> Tensor')
_operator = torch.ops.mmcontext.conv_norm_act.default
_NO_CONVOLUTION = (None, None, (), (), (), 1)
_NO_NORM = (None, None, None, None, 0., 0)


def run_compiled(x: Tensor, conv: Optional[Convolution] = None, norm: Optional[Norm] = None,
                 activation: str = 'none', residual: Optional[Tensor] = None,
                 method: str = 'auto') -> Tensor:
    """The operator itself, for arguments that it is known to support.

    Args: as :func:`mmcontext.ops.conv_norm_act.conv_norm_act`.
    """
    if norm is None:
        norm = _NO_NORM
    elif isinstance(norm, GroupNorm):
        norm = (None, None, norm.weight, norm.bias, norm.eps, norm.groups)
    else:
        norm = (*norm, 0)
    return _operator(x, *(conv or _NO_CONVOLUTION), *norm, residual, activation, method)


def _composed(x, weight, bias, stride, padding, dilation, groups, mean, variance, norm_weight,
              norm_bias, eps, norm_groups, residual, activation, method):
    conv = norm = None
    if weight is not None:
        conv = Convolution(weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    if norm_groups:
        norm = GroupNorm(norm_groups, norm_weight, norm_bias, eps)
    elif mean is not None:
        norm = BatchNorm(mean, variance, norm_weight, norm_bias, eps)
    return compose(x, conv, norm, activation, residual)


register_fake('conv_norm_act', _composed)
if UNAVAILABLE:
    LIBRARY.impl('conv_norm_act', _composed, 'CompositeImplicitAutograd')
