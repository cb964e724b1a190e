"""Convolution, norm and activation, of which the last two are one pass at inference on the CPU.

Everywhere else, and wherever a module is not what is known here or has hooks, the modules are
called one after the other.
"""
from typing import Optional

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from mmcontext.ops import native_library
from mmcontext.ops.tracing import is_compiling, is_transformed

_ACTIVATIONS = {type(None): 'none', nn.Identity: 'none', nn.ReLU: 'relu', nn.SiLU: 'silu'}
_NORMS = (_BatchNorm, nn.GroupNorm)


def at_inference(x: Tensor) -> bool:
    """Whether ``x`` is a float32 map on the CPU and nothing but numbers is wanted of it."""
    return (type(x) is Tensor and x.dtype is torch.float32 and x.is_cpu and x.dim() == 4
            and not (torch.is_grad_enabled() or is_compiling() or torch.jit.is_tracing()
                     or is_transformed() or _has_any_global_hook()))


def faster_by_pixel(x: Tensor) -> bool:
    """Whether a contiguous ``x`` is worth turning channels-last for what :func:`fused` and the
    C++ kernels make of it, now that no gradient is wanted."""
    return (at_inference(x) and x.is_contiguous() and not native_library.UNAVAILABLE
            and torch.backends.mkldnn.is_available())


def channel_means(*maps: Tensor) -> Tensor:
    """Mean over the pixels, [B, C, 1, 1], of the sum of maps [B, C, H, W] of one size."""
    if not native_library.UNAVAILABLE and all(
            at_inference(x) and (x.is_contiguous() or x.is_contiguous(
                memory_format=torch.channels_last)) for x in maps):
        return torch.ops.mmcontext_native.channel_means(maps)
    # Of each: the sum of the maps is never written.
    return sum(x.mean(dim=(2, 3), keepdim=True) for x in maps)


def _hooked(module: Optional[nn.Module]) -> bool:
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)``, 1x1 convolutions by the fastest way.

    oneDNN rearranges the weights of channels-last tensors in every call, which takes long where
    there is little else to do, and it steps through strides slowly.
    """
    if (type(conv) is not nn.Conv2d or conv.kernel_size != (1, 1) or conv.groups != 1
            or conv.padding != (0, 0) or _hooked(conv)):
        return conv(x)
    by_pixel = x.is_contiguous(memory_format=torch.channels_last)
    if conv.stride != (1, 1):
        x = x[:, :, ::conv.stride[0], ::conv.stride[1]].contiguous(
            memory_format=torch.channels_last if by_pixel else torch.contiguous_format)
        by_pixel = x.is_contiguous(memory_format=torch.channels_last)
    weight, bias = conv._parameters['weight'], conv._parameters['bias']
    batch, _, height, width = x.shape
    pixels = batch * height * width
    small = (pixels <= (64 if conv.in_channels < conv.out_channels else 400)
             or pixels * weight.numel() <= 16e6)
    if not (by_pixel and small):
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _norm_act(x: Tensor, norm: nn.Module, act: Optional[nn.Module], residual: Optional[Tensor],
              overwrite: bool) -> Optional[Tensor]:
    """``act(norm(x) + residual)`` by the C++ kernels; None where they do not serve."""
    by_pixel = x.is_contiguous(memory_format=torch.channels_last)
    if (native_library.UNAVAILABLE or _hooked(norm) or _hooked(act)
            or x.dtype is not torch.float32  # as a convolution under autocast leaves it
            or not (by_pixel or x.is_contiguous())):
        return None
    if residual is not None and not (
            residual.dtype is x.dtype and residual.shape == x.shape and residual.is_contiguous(
                memory_format=torch.channels_last if by_pixel else torch.contiguous_format)):
        return None
    kernels, activation = torch.ops.mmcontext_native, _ACTIVATIONS[type(act)]
    weight, bias = norm._parameters['weight'], norm._parameters['bias']
    if type(norm) is nn.GroupNorm and residual is None:
        return kernels.group_norm_act(x, norm.num_groups, weight, bias, norm.eps, activation,
                                      out=x if overwrite else torch.empty_like(x))
    if type(norm).forward is not _BatchNorm.forward or norm.training:
        return None
    mean, variance = norm._buffers['running_mean'], norm._buffers['running_var']
    if mean is None:
        return None
    return kernels.batch_norm_act(x, mean, variance, weight, bias, norm.eps, residual, activation,
                                  out=x if overwrite else torch.empty_like(x))


def fused(x: Tensor, *modules: nn.Module, residual: Optional[Tensor] = None,
          overwrite: bool = False) -> Tensor:
    """What the modules make of ``x``, one after the other.

    Args:
        x: [B, C, H, W].
        modules: Of any kind; it is convolutions, norms and activations that are fused.
        residual: What is added in front of the last module, the activation. None for nothing.
        overwrite: Whether nobody else reads ``x`` any more.
    """
    fast = at_inference(x)
    index, last = 0, len(modules) - 1
    while index <= last:
        module = modules[index]
        if index == last and residual is not None:
            # In place: no module before keeps its output for its backward.
            x = x.add_(residual) if x.dtype == residual.dtype else x + residual
        index += 1
        if fast and isinstance(module, _NORMS):
            act = modules[index] if index <= last else None
            if type(act) not in _ACTIVATIONS:
                act = None
            ends = act is not None and index == last
            y = _norm_act(x, module, act, residual if ends else None, overwrite)
            if y is not None:
                x = y
                overwrite = False
                index += act is not None
                continue
        x = _convolve(module, x) if fast else module(x)
        # A hook may have kept the output.
        overwrite = type(module) is nn.Conv2d and not _hooked(module)
    return x


class FusedSequential(nn.Sequential):
    """``Sequential`` that at inference runs a norm and the activation behind it together."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> what the modules make of it."""
        return fused(x, *self._modules.values())


class FusedConvModule(ConvModule):
    """mmcv's ``ConvModule`` that at inference runs norm and activation together."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, Ho, Wo]."""
        usual = (activate and norm and self.with_norm and self.with_activation
                 and self.order == ('conv', 'norm', 'act') and not self.with_explicit_padding)
        if not usual or not at_inference(x):
            return super().forward(x, activate, norm)
        return fused(x, self.conv, self.norm, self.activate)


def conv_norm_act(in_channels: int, out_channels: int, kernel_size, norm_cfg: Optional[dict],
                  act_cfg: Optional[dict], **conv_options) -> FusedSequential:
    """Convolution, norm (BN unless ``norm_cfg`` says otherwise) and activation.

    ``ConvModule`` would do, but warns of every convolution bias in front of a norm, and some of
    the published layers have one.
    """
    modules = [
        nn.Conv2d(in_channels, out_channels, kernel_size, **conv_options),
        build_norm_layer(norm_cfg or dict(type='BN'), out_channels)[1]
    ]
    if act_cfg is not None:
        modules.append(build_activation_layer(act_cfg))
    return FusedSequential(*modules)
