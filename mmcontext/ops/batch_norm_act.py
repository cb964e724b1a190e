"""Batch norm, residual and activation of a feature map on a GPU, in training and at inference.

torch's batch norm of channels-last maps reads a map twice forwards and backwards by kernels that
reach a fifth to a half of the memory's bandwidth, and what is added and the activation are passes
of their own. Here they are two passes forwards and two backwards, of CUDA kernels compiled at
their first use (``csrc/batch_norm_act.cpp``, ``csrc/cuda/batch_norm.cu``).
"""
import os
from typing import Dict, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcontext.ops import native_library
from mmcontext.ops.tracing import is_compiling, is_observed, is_transformed

METHOD_VARIABLE = 'MMCONTEXT_BATCH_NORM_ACT'
ACTIVATIONS = ('none', 'relu', 'silu')
# 'null': all that the host does for a launch, on the CPU and without the launch.
_METHODS = ('auto', 'cuda', 'torch', 'null')
_STORAGES = (torch.float32, torch.bfloat16, torch.float16)


def requested_method(method: Optional[str]) -> str:
    """The method that an argument, or the environment in its place, asks for."""
    source = 'method' if method is not None else METHOD_VARIABLE
    if method is None:
        method = os.environ.get(METHOD_VARIABLE) or 'auto'
    if method not in _METHODS:
        raise ValueError(f'{source} must be one of {", ".join(_METHODS)}, got {method!r}')
    return method


def refusal(x: Tensor, residual: Optional[Tensor] = None, weight: Optional[Tensor] = None,
            running_mean: Optional[Tensor] = None, training: bool = True,
            activation: str = 'none', device_type: str = 'cuda') -> Optional[str]:
    """Why the kernels cannot serve, or None.

    Args: as :func:`batch_norm_act`.
    """
    if type(x) is not Tensor or (residual is not None and type(residual) is not Tensor):
        return 'an operand is of a subclass of Tensor'
    if x.device.type != device_type:
        return f'the CUDA kernels run on a GPU, x is on {x.device}'
    if is_compiling() or torch.jit.is_tracing():
        return 'a graph is being recorded'
    if x.dim() != 4 or x.dtype not in _STORAGES:
        return f'they serve maps [B, C, H, W] in float32, bfloat16 or float16, x is {x.dtype}'
    channels = x.shape[1]
    if not x.is_contiguous(memory_format=torch.channels_last) or x.numel() == 0:
        return 'they serve channels-last maps'
    if channels * x.element_size() % 16:
        return f'{channels} channels of {x.dtype} are no multiple of 16 bytes'
    if residual is not None and (
            activation == 'silu' or residual.shape != x.shape or residual.dtype != x.dtype
            or not residual.is_contiguous(memory_format=torch.channels_last)):
        return 'what is added is not as x, or a SiLU follows'
    if training and x.numel() == channels:
        return 'one value a channel has no statistics'
    for vector in (weight, running_mean):
        if vector is not None and vector.dtype is not torch.float32:
            return f'the norm has tensors in {vector.dtype}, they serve float32'
    if is_transformed():
        return 'a transform of torch.func or forward-mode differentiation is under way'
    if is_observed():
        return 'a TorchDispatchMode looks on, which may know standard operators only'
    if native_library.UNAVAILABLE:
        return native_library.UNAVAILABLE
    if device_type == 'cuda':
        return torch.ops.mmcontext_native.gpu_refusal(x.device.index) or None
    return None


def may_serve(x: Tensor) -> bool:
    """Whether the kernels may be the way for a map, looked at as cheaply as can be."""
    return x.is_cuda or os.environ.get(METHOD_VARIABLE) == 'null'


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
        training: Normalise by the statistics of ``x``, else by the running ones.
        momentum: Share of the new statistics in the running ones. Defaults to 0.1.
        eps: Added to the variance. Defaults to 1e-5.
        activation: 'none', 'relu' or 'silu'.
        residual: Map like ``x`` that is added in front of the activation; None for nothing.
        method: 'auto': the CUDA kernels where they can serve, see
            :func:`explain_batch_norm_act`, else torch's functions; 'cuda'; 'torch'; 'null': on
            the CPU, everything but the launches (the result is not written), to measure the
            host. None for the environment variable ``MMCONTEXT_BATCH_NORM_ACT``, or 'auto'.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: Activation or method are unknown.
        RuntimeError: 'cuda' or 'null' cannot serve.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation must be one of {", ".join(ACTIVATIONS)}, '
                         f'got {activation!r}')
    wanted = requested_method(method)
    if wanted != 'torch':
        reason = refusal(x, residual, weight, running_mean, training, activation,
                         'cpu' if wanted == 'null' else 'cuda')
        if reason is None:
            return torch.ops.mmcontext_native.batch_norm_act(
                x, residual, weight, bias, running_mean, running_var, num_batches_tracked,
                training, momentum, eps, activation)
        if wanted != 'auto':
            raise RuntimeError(f'method {wanted!r} of batch_norm_act cannot serve: {reason}')
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    return {'none': lambda y: y, 'relu': F.relu, 'silu': F.silu}[activation](y)


def explain_batch_norm_act(x: Tensor, method: Optional[str] = None,
                           **options) -> Dict[str, Union[str, Dict[str, str]]]:
    """How :func:`batch_norm_act` would serve a map, and why not by the kernels.

    Args:
        x: Feature map [B, C, H, W].
        method: As of :func:`batch_norm_act`.
        options: ``residual``, ``weight``, ``running_mean``, ``training`` and ``activation``, as
            of :func:`batch_norm_act`.

    Returns:
        ``chosen``: 'cuda' or 'torch'; ``refused``: {'cuda': reason} where the kernels cannot
        serve, else empty.
    """
    wanted, reason = requested_method(method), refusal(x, **options)
    if wanted == 'auto':
        wanted = 'torch' if reason else 'cuda'
    return {'chosen': wanted, 'refused': {} if reason is None else {'cuda': reason}}
