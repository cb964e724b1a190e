"""Convolutions with large kernels: by FFT, directly, or whichever is cheaper."""
from mmcontext.ops.fft_conv.choice import (
    METHOD_VARIABLE,
    MethodChoice,
    choose_method,
    clear_measurements,
    convolve,
    explain_method,
)
from mmcontext.ops.fft_conv.functional import direct_conv, fft_conv
from mmcontext.ops.fft_conv.geometry import fast_fft_size

__all__ = [
    'METHOD_VARIABLE', 'MethodChoice', 'choose_method', 'clear_measurements', 'convolve',
    'direct_conv', 'explain_method', 'fast_fft_size', 'fft_conv'
]
