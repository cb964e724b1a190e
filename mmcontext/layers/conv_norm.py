"""Convolution, norm and activation, which are one pass at inference on the CPU.

Everywhere else, and wherever a module is not what is known here or somebody has hooked or
changed it, the modules are called one after the other.
"""
import platform
from typing import Iterable, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_activation_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcontext.layers._modules import has_global_hooks, is_plain, is_touched
from mmcontext.layers.norms import build_norm, fit_norm_cfg, lacks_statistics, normalise
from mmcontext.ops import grouped_conv2d, native_library
from mmcontext.ops.arguments import output_size
from mmcontext.ops.tracing import is_compiling, is_observed, is_symbolic, is_transformed

_ACTIVATIONS = {type(None): 'none', nn.Identity: 'none', nn.ReLU: 'relu', nn.SiLU: 'silu'}
_NORMS = (_BatchNorm, nn.GroupNorm)
_NO_NORM = (None, None, None, None, 0.)  # as _statistics has it
# Elsewhere it has not been compared with the libraries at hand.
_CONVOLVES = (not native_library.UNAVAILABLE
              and platform.machine().lower() in ('x86_64', 'amd64'))


def _is_autocast() -> bool:
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def at_inference(x: Tensor) -> bool:
    """Whether ``x`` is a float32 map on the CPU and nothing but numbers is wanted of it."""
    return (type(x) is Tensor and x.dtype is torch.float32 and x.is_cpu and x.dim() == 4
            and not (torch.is_grad_enabled() or is_compiling() or torch.jit.is_tracing()
                     or is_transformed() or is_observed() or _is_autocast()
                     or has_global_hooks()))


def _layout(x: Tensor) -> Optional[torch.memory_format]:
    """The memory format of a map without gaps, channels-last where it is both; else None."""
    for layout in (torch.channels_last, torch.contiguous_format):
        if x.is_contiguous(memory_format=layout):
            return layout
    return None


def faster_by_pixel(x: Tensor) -> bool:
    """Whether a contiguous ``x`` is worth turning channels-last for what :func:`fused` and the
    C++ kernels make of it, now that no gradient is wanted."""
    return (at_inference(x) and x.is_contiguous() and not native_library.UNAVAILABLE
            and torch.backends.mkldnn.is_available())


def channel_means(*maps: Tensor) -> Tensor:
    """Mean over the pixels, [B, C, 1, 1], of the sum of maps [B, C, H, W] of one size."""
    if not native_library.UNAVAILABLE and all(
            at_inference(x) and _layout(x) is not None for x in maps):
        return torch.ops.mmcontext_native.channel_means(maps)
    # Of each: the sum of the maps is never written.
    return sum(x.mean(dim=(2, 3), keepdim=True) for x in maps)


def _is_nothing(module: nn.Module) -> bool:
    return type(module) is nn.Identity and not is_touched(module)


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)``; on the CPU a stride of a 1x1 convolution is taken first, as oneDNN steps
    slowly, and on a GPU narrow groups are run by what is fastest for them."""
    if x.is_cuda:
        if conv.groups > 1 and conv.padding_mode == 'zeros' and is_plain(conv, nn.Conv2d):
            return grouped_conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding,
                                  conv.dilation, conv.groups)
        return conv(x)
    if (type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) and conv.stride != (1, 1)
            and conv.padding == (0, 0) and not is_touched(conv)):
        x = x[:, :, ::conv.stride[0], ::conv.stride[1]].contiguous(
            memory_format=_layout(x) or torch.contiguous_format)
        return F.conv2d(x, conv.weight, conv.bias, groups=conv.groups)
    return conv(x)


def _out_shape(conv: nn.Conv2d, x: Tensor) -> Tuple[int, ...]:
    return (x.shape[0], conv.out_channels, *output_size(
        x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation))


def _convolved_by_pixel(conv: nn.Module, x: Tensor) -> bool:
    """Whether the C++ convolution of channels-last maps serves, and is the faster one.

    It is where oneDNN would lay out weights for long that few pixels read, and level with it
    elsewhere; narrow groups, narrow outputs of large kernels, and single pixels are oneDNN's.
    """
    if (not _CONVOLVES or type(conv) is not nn.Conv2d or is_touched(conv)
            or conv.padding_mode != 'zeros' or type(conv.padding) is not tuple
            or _layout(x) is not torch.channels_last
            or x.shape[0] * x.shape[2] * x.shape[3] < 8):
        return False
    weight = conv.weight
    outputs, depth = weight.shape[0] // conv.groups, weight.shape[1]
    taps = weight.shape[2] * weight.shape[3]
    return (weight.dtype is torch.float32 and weight.is_cpu and x.shape[1] == conv.in_channels
            and depth >= 16 and taps * depth <= 8192 and outputs >= (8 if taps == 1 else 32)
            and min(_out_shape(conv, x)) > 0
            and _layout(weight) is not None)


def _statistics(norm: Optional[nn.Module]) -> Optional[tuple]:
    """Mean, variance, weight, bias and eps of a batch norm that takes them as they are, or None."""
    if (not isinstance(norm, _BatchNorm) or type(norm).forward is not _BatchNorm.forward
            or norm.training or is_touched(norm)):
        return None
    mean, variance = norm._buffers['running_mean'], norm._buffers['running_var']
    if mean is None or mean.dtype is not torch.float32:
        return None
    return mean, variance, norm._parameters['weight'], norm._parameters['bias'], norm.eps


def _fits(residual: Optional[Tensor], shape: Sequence[int], layout: torch.memory_format) -> bool:
    """Whether a residual, if there is one, can be added where its map is written."""
    return residual is None or (residual.dtype is torch.float32 and residual.shape == shape
                                and residual.is_contiguous(memory_format=layout))


def _norm_act(x: Tensor, norm: nn.Module, act: Optional[nn.Module], residual: Optional[Tensor],
              overwrite: bool) -> Optional[Tensor]:
    """``act(norm(x) + residual)`` by the C++ kernels; None where they do not serve."""
    layout = _layout(x)
    native_library.warn_if_missing()
    if (native_library.UNAVAILABLE or x.dtype is not torch.float32  # a module may have changed it
            or layout is None or not _fits(residual, x.shape, layout)):
        return None
    kernels, activation = torch.ops.mmcontext_native, _ACTIVATIONS[type(act)]
    if (type(norm) is nn.GroupNorm and residual is None and not is_touched(norm)
            and not lacks_statistics(norm, x)):
        return kernels.group_norm_act(x, norm.num_groups, norm._parameters['weight'],
                                      norm._parameters['bias'], norm.eps, activation,
                                      out=x if overwrite else torch.empty_like(x))
    statistics = _statistics(norm)
    if statistics is None:
        return None
    return kernels.batch_norm_act(x, *statistics, residual, activation,
                                  out=x if overwrite else torch.empty_like(x))


def _conv_norm_act(x: Tensor, conv: nn.Conv2d, statistics: Optional[tuple],
                   act: Optional[nn.Module], residual: Optional[Tensor]) -> Tensor:
    """``act(norm(conv(x)) + residual)`` of a channels-last ``x`` in one pass."""
    return torch.ops.mmcontext_native.conv_norm_act(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups,
        *(statistics or _NO_NORM), residual, _ACTIVATIONS[type(act)])


def _first_together(x: Tensor, modules: Sequence[nn.Module], residual: Optional[Tensor],
                    overwrite: bool) -> Tuple[Optional[Tensor], int]:
    """What the C++ kernels make of the first modules in one pass, and of how many; or None."""
    conv = modules[0] if _convolved_by_pixel(modules[0], x) else None
    count = int(conv is not None)
    # What mmcv's fuse_conv_bn leaves of a norm.
    while 0 < count < len(modules) - 1 and _is_nothing(modules[count]):
        count += 1
    norm = modules[count] if count < len(modules) else None
    statistics = None if conv is None else _statistics(norm)
    if conv is not None:
        count += statistics is not None
    elif isinstance(norm, _NORMS):
        count += 1
    else:
        return None, 0
    act = modules[count] if count < len(modules) else None
    if type(act) not in _ACTIVATIONS or is_touched(act):
        act = None
    added = residual if act is not None and count + 1 == len(modules) else None
    if conv is None:
        y = _norm_act(x, norm, act, added, overwrite)
    else:
        if not _fits(added, _out_shape(conv, x), torch.channels_last):
            act = added = None
        y = _conv_norm_act(x, conv, statistics, act, added)
    return y, count + (act is not None)


def _looked_into(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody may have kept an output of the modules, or of the modules in them."""
    return has_global_hooks() or any(
        is_touched(part) for module in modules for part in module.modules())


def add_to_output(x: Tensor, residual: Tensor, makers: Iterable[nn.Module]) -> Tensor:
    """``x + residual``, in place where ``x`` is nobody else's.

    Args:
        makers: Whose output ``x`` is; none of them may keep it for its backward.
    """
    if is_symbolic(x) or x.dtype != residual.dtype or _looked_into(makers):
        return x + residual
    return x.add_(residual)


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
        if index == last and residual is not None:
            x = add_to_output(x, residual, modules[:index])
        if fast:
            y, count = _first_together(x, modules[index:], residual, overwrite)
            if y is not None:
                # y is nobody else's: the modules that others look into have not run here.
                x, overwrite = y, True
                index += count
                continue
        module = modules[index]
        if getattr(module, 'inplace', False) and index and _looked_into(modules[:index]):
            x = x.clone()
        if type(module) is nn.Conv2d and (fast or type(x) is Tensor and x.is_cuda):
            x = _convolve(module, x)
        else:
            x = normalise(module, x)
        # A hook may have kept the output.
        overwrite = type(module) is nn.Conv2d and not is_touched(module)
        index += 1
    return x


class FusedSequential(nn.Sequential):
    """``Sequential`` that at inference runs convolution, norm and activation together."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> what the modules make of it."""
        return fused(x, *self._modules.values())


class FusedConvModule(ConvModule):
    """mmcv's ``ConvModule`` that at inference runs its modules together.

    Args: as ``ConvModule``; ``norm_cfg`` is fitted to ``out_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, *args,
                 norm_cfg: Optional[dict] = None, **kwargs) -> None:
        super().__init__(in_channels, out_channels, *args, **kwargs,
                         norm_cfg=norm_cfg and fit_norm_cfg(norm_cfg, out_channels))

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, Ho, Wo]."""
        if (self.order != ('conv', 'norm', 'act') or self.with_explicit_padding
                or getattr(self, 'efficient_conv_bn_eval_forward', None) is not None):
            return super().forward(x, activate, norm)
        modules = [self.conv]
        if norm and self.with_norm:
            modules.append(self.norm)
        if activate and self.with_activation:
            modules.append(self.activate)
        return fused(x, *modules)


def conv_norm_act(in_channels: int, out_channels: int, kernel_size, norm_cfg: Optional[dict],
                  act_cfg: Optional[dict], **conv_options) -> FusedSequential:
    """Convolution, norm (BN unless ``norm_cfg`` says otherwise) and activation.

    ``ConvModule`` would do, but warns of every convolution bias in front of a norm, and some of
    the published layers have one.
    """
    modules = [
        nn.Conv2d(in_channels, out_channels, kernel_size, **conv_options),
        build_norm(norm_cfg, out_channels)
    ]
    if act_cfg is not None:
        modules.append(build_activation_layer(act_cfg))
    return FusedSequential(*modules)
