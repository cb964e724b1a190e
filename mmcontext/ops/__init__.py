"""Pure functions on tensors; nothing here imports anything but torch (and triton, lazily)."""
import sys

from mmcontext.ops.conv_norm_act import conv_norm_act, explain_conv_norm_act
from mmcontext.ops.fft_conv import (
    convolve,
    direct_conv,
    explain_method,
    fft_conv,
)
from mmcontext.ops.grouped_conv import explain_grouped_conv, grouped_conv2d
from mmcontext.ops.local_aggregation import (
    explain,
    fused_involution,
    local_aggregation,
    standard_operators,
)

__all__ = [
    'conv_norm_act', 'convolve', 'direct_conv', 'explain', 'explain_conv_norm_act',
    'explain_grouped_conv', 'explain_method', 'fft_conv', 'fused_involution', 'grouped_conv2d',
    'local_aggregation', 'standard_operators'
]

if not hasattr(sys.modules['mmcontext'], 'register_safe_globals'):
    raise ImportError(
        'another project called mmcontext has written over this one, whose distribution is '
        'mmcontext-vision: pip uninstall mmcontext, and install mmcontext-vision again')
