"""Batch norm, residual and activation of a feature map on a GPU, in training and at inference.

torch's batch norm of channels-last maps reads a map twice forwards and twice backwards, with
kernels that reach a fifth to a half of the memory bandwidth; the residual and the activation are
separate passes. Here everything takes two passes forwards and two backwards, by CUDA kernels
compiled at first use (``csrc/batch_norm_act.cpp``, ``csrc/cuda/batch_norm.cu``).
"""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops.choice import Explanation
from mmcontext.ops.kernel_switch import KernelSwitch
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.tracing import eager_refusal

METHOD_VARIABLE = 'MMCONTEXT_BATCH_NORM_ACT'
ACTIVATIONS = ('none', 'relu', 'silu')
switch = KernelSwitch('batch_norm_act', METHOD_VARIABLE, 'batch_norm_act_refusal')
_operator = None if UNAVAILABLE else torch.ops.mmcontext_native.batch_norm_act


def run_kernels(x: Tensor, residual: Optional[Tensor], weight: Optional[Tensor],
                bias: Optional[Tensor], running_mean: Optional[Tensor],
                running_var: Optional[Tensor], num_batches_tracked: Optional[Tensor],
                training: bool, momentum: float, eps: float, activation: str,
                offset: Optional[Tensor] = None) -> Optional[Tensor]:
    """The kernels' result; None if they do not support the call or the environment disables them.

    Args: as :func:`batch_norm_act`, and
        offset: [C], taken to have been added to ``x``; only in training, where it changes nothing
            but the running mean. None for nothing.
    """
    if UNAVAILABLE or eager_refusal() is not None:
        return None
    return _operator(x, residual, weight, bias, running_mean, running_var, num_batches_tracked,
                     offset, training, momentum, eps, activation, '')


def batch_norm_act(x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None,
                   running_mean: Optional[Tensor] = None, running_var: Optional[Tensor] = None,
                   num_batches_tracked: Optional[Tensor] = None, training: bool = True,
                   momentum: float = 0.1, eps: float = 1e-5, activation: str = 'none',
                   residual: Optional[Tensor] = None, method: Optional[str] = None) -> Tensor:
    """``activation(batch_norm(x) + residual)``.

    Args:
        x: Feature map [B, C, H, W].
        weight: [C]; None for 1.
        bias: [C]; None for 0.
        running_mean: [C], updated in training; None to keep none.
        running_var: [C], with ``running_mean``.
        num_batches_tracked: Integer that counts the calls in training; None for none.
        training: Normalise with the statistics of ``x``, else with the running ones.
        momentum: Weight of the new statistics in the running ones. Defaults to 0.1.
        eps: Added to the variance. Defaults to 1e-5.
        activation: 'none', 'relu' or 'silu'.
        residual: Map like ``x`` that is added before the activation; None for nothing.
        method: 'auto': the CUDA kernels if they support the call, see
            :func:`explain_batch_norm_act`, else torch's functions; 'cuda'; 'torch'; 'null': on
            the CPU, everything but the launches (the result is not written), to measure the host
            overhead. None for the environment variable ``MMCONTEXT_BATCH_NORM_ACT``, or 'auto'.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: Activation or method is unknown.
        RuntimeError: ``method`` is 'cuda' or 'null', which does not support the call.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation must be one of {", ".join(ACTIVATIONS)}, '
                         f'got {activation!r}')
    if switch.may_serve(x, method):
        y = _operator(x, residual, weight, bias, running_mean, running_var, num_batches_tracked,
                      None, training, momentum, eps, activation, method or '')
        if y is not None:
            return y
    switch.insist(method, x, residual, weight, bias, running_mean, running_var, training,
                   activation)
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    return {'none': lambda y: y, 'relu': F.relu, 'silu': F.silu}[activation](y)


def explain_batch_norm_act(
        x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None,
        running_mean: Optional[Tensor] = None, running_var: Optional[Tensor] = None,
        training: bool = True, activation: str = 'none', residual: Optional[Tensor] = None,
        method: Optional[str] = None) -> Explanation:
    """Which method :func:`batch_norm_act` would use for a map, and why not the kernels.

    Args: as :func:`batch_norm_act`.

    Returns:
        ``chosen``: 'cuda', 'null' or 'torch'; ``refused``: {'cuda': reason} if the kernels do not
        support the call, else empty.
    """
    return switch.explain(method, x, residual, weight, bias, running_mean, running_var,
                           training, activation)
