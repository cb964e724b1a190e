"""Convolution, norm, residual and activation of a feature map, in one pass at inference."""
from mmcontext.ops.conv_norm_act.arguments import BatchNorm, Convolution, GroupNorm
from mmcontext.ops.conv_norm_act.frontend import (
    METHOD_VARIABLE,
    compiled_method,
    conv_norm_act,
    explain_conv_norm_act,
)
from mmcontext.ops.conv_norm_act.operator import run_compiled
from mmcontext.ops.conv_norm_act.pooling import channel_means, spatial_mean

__all__ = [
    'METHOD_VARIABLE', 'BatchNorm', 'Convolution', 'GroupNorm', 'channel_means',
    'compiled_method', 'conv_norm_act', 'explain_conv_norm_act', 'run_compiled', 'spatial_mean'
]
