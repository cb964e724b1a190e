"""Argument checks, the choice of an implementation, and the public entry point."""
import os
from typing import Optional, Tuple

import torch
from torch import Tensor

from mmcontext.ops import native_library
from mmcontext.ops.choice import AUTO, Explanation, cannot_serve, explanation, requested
from mmcontext.ops.conv_norm_act.arguments import ACTIVATIONS, Convolution, Norm
from mmcontext.ops.conv_norm_act.operator import run_compiled
from mmcontext.ops.conv_norm_act.reference import compose
from mmcontext.ops.local_aggregation.operators import is_autocast
from mmcontext.ops.tracing import eager_refusal

METHOD_VARIABLE = 'MMCONTEXT_CONV_NORM_ACT'
# 'own' and 'library' say whose convolution the compiled operator takes.
_METHODS = ('own', 'library', 'torch')


def refusal(x: Tensor) -> Optional[str]:
    """Why the compiled operator does not support a map, or None."""
    if type(x) is not Tensor:
        return f'x is a {type(x).__name__}'
    if torch.is_grad_enabled():
        return 'gradients may be wanted, and it has none'
    # First of all: asking for a size would be recorded too.
    reason = eager_refusal()
    if reason is not None:
        return reason
    if x.dtype is not torch.float32 or not x.is_cpu or x.dim() != 4:
        return (f'it serves float32 maps [B, C, H, W] on the CPU, x is {x.dtype} '
                f'{tuple(x.shape)} on {x.device}')
    if is_autocast('cpu'):
        return 'autocast wants the convolution in another dtype'
    return native_library.UNAVAILABLE


def _requested(method: Optional[str]) -> str:
    return requested('method', method, METHOD_VARIABLE, _METHODS).way


def compiled_method(x: Tensor) -> str:
    """The method that :func:`run_compiled` should use for a map; '' if it must not be called."""
    if type(x) is not Tensor or torch.is_grad_enabled() or not x.is_cpu:
        return ''  # As `refusal` would say; shortcut for training and GPUs.
    reason = refusal(x)
    if reason is not None:
        if reason == native_library.UNAVAILABLE:
            native_library.warn_if_missing()
        return ''
    if not os.environ.get(METHOD_VARIABLE):
        return AUTO
    method = _requested(None)
    return '' if method == 'torch' else method


def conv_norm_act(x: Tensor, conv: Optional[Convolution] = None, norm: Optional[Norm] = None,
                  activation: str = 'none', residual: Optional[Tensor] = None,
                  method: Optional[str] = None) -> Tensor:
    """``activation(norm(conv(x)) + residual)``.

    Args:
        x: Feature map [B, C, H, W], of any floating dtype and memory layout.
        conv: The convolution; None for none.
        norm: :class:`BatchNorm` or :class:`GroupNorm`; None for none.
        activation: 'none', 'relu' or 'silu'.
        residual: What is added before the activation, in the shape of the output or one
            that is broadcast to it; None for nothing.
        method: 'auto': the compiled operator, in one pass or two, if it supports the call, see
            :func:`explain_conv_norm_act`, else standard functions; 'own': the compiled operator
            with its own convolution; 'library': with torch's convolution (oneDNN); 'torch':
            standard functions. None for the environment variable ``MMCONTEXT_CONV_NORM_ACT``, or
            'auto'.

    Returns:
        [B, Co, Ho, Wo].

    Raises:
        ValueError: Activation or method is unknown, or shapes do not match.
        RuntimeError: 'own' or 'library' does not support the call.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation must be one of {", ".join(ACTIVATIONS)}, '
                         f'got {activation!r}')
    wanted = _requested(method)
    if wanted == 'torch':
        return compose(x, conv, norm, activation, residual)
    reason = refusal(x)
    if reason is None:
        return run_compiled(x, conv, norm, activation, residual, wanted)
    if wanted != AUTO:
        raise cannot_serve('method', wanted, 'conv_norm_act', reason)
    return compose(x, conv, norm, activation, residual)


def explain_conv_norm_act(
        x: Tensor, conv: Optional[Convolution] = None,
        method: Optional[str] = None) -> Explanation:
    """Which method :func:`conv_norm_act` would use for a map, and why not the others.

    Args: as :func:`conv_norm_act`.

    Returns:
        ``chosen``: 'own', 'library' or 'torch'; without ``conv``, 'own' is the compiled pass.
        ``refused``: method -> reason, for those that do not support the call or that 'auto' does
        not choose.
    """
    wanted = _requested(method)
    reason = refusal(x)
    if reason is not None:
        return explanation('torch', {'own': reason, 'library': reason})
    unable, slower = _own_reasons(x, conv)
    reason = unable or slower
    chosen = ('library' if reason else 'own') if wanted == AUTO else wanted
    return explanation(chosen, {'own': reason})


def _own_reasons(x: Tensor, conv: Optional[Convolution]) -> Tuple[str, str]:
    """Why the compiled convolution does not support the call, and why the library's is at least as
    fast; '' if there is no such reason."""
    if conv is None:
        return '', ''
    weight, _, *geometry = conv
    return tuple(torch.ops.mmcontext_native.conv_refusals(x, weight, *geometry))
