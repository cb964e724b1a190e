"""Convolution, norm, residual and activation as modules that belong together.

At inference on the CPU they are one call of :func:`mmcontext.ops.conv_norm_act`; on a GPU norm,
residual and activation are one call of :func:`mmcontext.ops.batch_norm_act.batch_norm_act`. If a
module is of another kind, or has been hooked or changed, the modules are called one by one.
"""
from typing import Dict, Iterable, Optional

import torch
from mmcv.cnn import ConvModule, build_activation_layer
from torch import Tensor, nn

from mmcontext.layers._modules import GLOBAL_HOOKS, has_global_hooks, is_touched
from mmcontext.layers.norms import build_norm, fit_norm_cfg, normalise
from mmcontext.ops import grouped_conv2d
from mmcontext.ops.batch_norm_act import run_kernels, switch
from mmcontext.ops.conv_norm_act import (
    BatchNorm,
    Convolution,
    GroupNorm,
    compiled_method,
    run_compiled,
)
from mmcontext.ops.conv_norm_act.arguments import Norm
from mmcontext.ops.tracing import eager_refusal, is_symbolic

_PARTS = ('pool', 'conv', 'norm', 'act')
# Class of a norm -> whether its forward is torch's batch norm.
_BATCH_NORMS: Dict[type, bool] = {}
ACTIVATIONS = {type(None): 'none', nn.Identity: 'none', nn.ReLU: 'relu', nn.SiLU: 'silu'}


def faster_channels_last(x: Tensor) -> bool:
    """Whether it pays to convert a contiguous ``x`` to channels-last.

    It does on a CPU if the C++ kernels or :func:`run_together` are faster that way (at inference
    only), and in half precision on a GPU, whose tensor cores work on channels-last maps: cuDNN
    would convert the map before every convolution and back after it.
    """
    if type(x) is not Tensor or not x.is_contiguous():
        return False
    if x.is_cuda:
        halved = torch.is_autocast_enabled() or x.dtype in (torch.float16, torch.bfloat16)
        return halved and not torch.version.hip and eager_refusal() is None
    return bool(compiled_method(x)) and torch.backends.mkldnn.is_available()


def _is_nothing(module: Optional[nn.Module]) -> bool:
    """Whether there is no module, or only the identity that mmcv's ``fuse_conv_bn`` leaves."""
    return module is None or (type(module) is nn.Identity and not is_touched(module))


def _convolution(conv: nn.Module) -> Optional[Convolution]:
    """The convolution that a module computes; None if the module has to be called."""
    if (type(conv) is not nn.Conv2d or conv.padding_mode != 'zeros'
            or type(conv.padding) is not tuple or is_touched(conv)):
        return None
    return Convolution(conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation,
                       conv.groups)


def is_batch_norm(norm: Optional[nn.Module]) -> bool:
    """Whether it is torch's batch norm. (All of torch's share one forward.)"""
    kind = type(norm)
    if kind not in _BATCH_NORMS:
        _BATCH_NORMS[kind] = getattr(kind, 'forward', None) is nn.BatchNorm2d.forward
    return _BATCH_NORMS[kind]


def batch_norm_operands(norm: nn.Module) -> tuple:
    """What the kernels need of torch's batch norm: weight, bias, running mean and variance, number
    of batches, whether to use the batch's statistics, momentum and eps."""
    affine, state = norm._parameters, norm._buffers
    mean = state['running_mean']
    return (affine['weight'], affine['bias'], mean, state['running_var'],
            state['num_batches_tracked'], norm.training or mean is None, norm.momentum, norm.eps)


def _norm(norm: nn.Module) -> Optional[Norm]:
    """The norm that a module computes, if with given statistics or those of groups; else None."""
    if is_touched(norm) or (norm.training and type(norm) is not nn.GroupNorm):
        return None
    if is_batch_norm(norm):
        mean = norm.running_mean
        if mean is None or mean.dtype is not torch.float32:
            return None
        return BatchNorm(mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    # With one channel per group a group may be a single value, which `normalise` has to handle.
    if type(norm) is nn.GroupNorm and norm.num_groups < norm.num_channels:
        return GroupNorm(norm.num_groups, norm.weight, norm.bias, norm.eps)
    return None


def _run_on_gpu(x: Tensor, conv: Optional[nn.Module], norm: Optional[nn.Module],
                act: Optional[nn.Module], residual: Optional[Tensor]) -> Tensor:
    """:func:`run_together` on a GPU, where every Python call delays the kernels.

    Narrow groups use the kernels that are fastest for them; batch norm, residual and activation
    take few passes. Attributes for which ``nn.Module`` would have to search are avoided.
    """
    hooked = any(GLOBAL_HOOKS)
    conv_free, norm_free, act_free = [
        module is not None and not (
            hooked or module._forward_hooks or module._forward_pre_hooks
            or module._backward_hooks or module._backward_pre_hooks
            or 'forward' in module.__dict__) for module in (conv, norm, act)]
    operands = offset = None
    if (norm_free and (_BATCH_NORMS.get(type(norm)) or is_batch_norm(norm))
            and norm.momentum is not None):
        operands = batch_norm_operands(norm)
    if conv_free and type(conv) is nn.Conv2d and conv.padding_mode == 'zeros':
        run = torch.conv2d if conv.groups == 1 else grouped_conv2d
        weight, bias = conv._parameters['weight'], conv._parameters['bias']
        if bias is not None and operands is not None and operands[5]:
            # Statistics of the batch take the bias out again.
            bias, offset = None, bias
        x = run(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    elif conv is not None:
        x = conv(x)
    if operands is not None and type(x) is Tensor:
        activation = ACTIVATIONS.get(type(act), 'none') if act_free else 'none'
        if activation == 'silu' and residual is not None:
            activation = 'none'
        y = run_kernels(x, residual, *operands, activation, offset)
        if y is not None:
            return y if act is None or activation != 'none' else act(y)
    if offset is not None:
        x = x + offset.to(x.dtype)[:, None, None]
    if not _is_nothing(norm):
        x = normalise(norm, x)
    return _finish_modules(x, conv, norm, act, residual)


def _looked_into(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook may have kept an output of the modules or of their submodules."""
    if has_global_hooks():
        return True
    for module in modules:
        # (Most have no submodules, and this runs in every layer.)
        if is_touched(module) or module._modules and any(map(is_touched, module.modules())):
            return True
    return False


def add_to_output(x: Tensor, residual: Tensor, makers: Iterable[nn.Module]) -> Tensor:
    """``x + residual``, in place if nothing else refers to ``x``.

    Args:
        makers: The modules that computed ``x``; none of them may need it in its backward pass.
    """
    if is_symbolic(x) or x.dtype != residual.dtype or _looked_into(makers):
        return x + residual
    return x.add_(residual)


def _finish(x: Tensor, makers: Iterable[nn.Module], act: Optional[nn.Module],
            residual: Optional[Tensor]) -> Tensor:
    if residual is not None:
        x = add_to_output(x, residual, makers)
    elif getattr(act, 'inplace', False) and makers and _looked_into(makers):
        x = x.clone()
    return x if act is None else act(x)


def _finish_modules(x: Tensor, conv: Optional[nn.Module], norm: Optional[nn.Module],
                    act: Optional[nn.Module], residual: Optional[Tensor]) -> Tensor:
    """Residual and activation after modules that have been called."""
    if residual is None and act is None:
        return x
    makers = [module for module in (conv, norm) if module is not None]
    if residual is not None and not makers:
        x, residual = x + residual, None  # x is the caller's
    return _finish(x, makers, act, residual)


def run_together(x: Tensor, conv: Optional[nn.Module] = None, norm: Optional[nn.Module] = None,
                 act: Optional[nn.Module] = None, residual: Optional[Tensor] = None) -> Tensor:
    """``act(norm(conv(x)) + residual)``.

    :class:`ConvNormAct` for modules whose parameters have names of their own.

    Args:
        x: [B, C, H, W].
        conv: A convolution, or any module in its place. None for none.
        norm: A norm of any kind. None for none.
        act: An activation of any kind. None for none.
        residual: Map that is added before the activation. None for nothing.
    """
    if type(x) is Tensor and (x.is_cuda or switch.is_on_gpu(x)):
        return _run_on_gpu(x, conv, norm, act, residual)
    method = '' if has_global_hooks() else compiled_method(x)
    convolution = statistics = None
    if conv is not None:
        convolution = _convolution(conv) if method else None
        if convolution is None:
            x = conv(x)
            method = method and compiled_method(x)  # which the module may have changed
    if not _is_nothing(norm):
        statistics = _norm(norm) if method else None
        if statistics is None:
            if convolution is not None:
                x, convolution = run_compiled(x, convolution, method=method), None
            x = normalise(norm, x)
    if convolution is None and statistics is None:
        return _finish_modules(x, conv, norm, act, residual)
    activation = None if is_touched(act) else ACTIVATIONS.get(type(act))
    if activation is None:
        return _finish(run_compiled(x, convolution, statistics, method=method), (), act, residual)
    return run_compiled(x, convolution, statistics, activation, residual, method)


class ConvNormAct(nn.Sequential):
    """Convolution, norm and activation, in one pass at inference.

    The given modules are named '0', '1', ... as in a ``Sequential``, in the order of the
    arguments except for ``pool``, which comes first.

    Args:
        conv: A convolution, or any module in its place. None for none.
        norm: A norm of any kind. None for none.
        act: An activation of any kind. None for none.
        pool: What comes before the convolution. None for nothing.
    """

    def __init__(self, conv: Optional[nn.Module] = None, norm: Optional[nn.Module] = None,
                 act: Optional[nn.Module] = None, pool: Optional[nn.Module] = None) -> None:
        parts = dict(zip(_PARTS, (pool, conv, norm, act)))
        given = [name for name, module in parts.items() if module is not None]
        super().__init__(*(parts[name] for name in given))
        self._names = {name: str(index) for index, name in enumerate(given)}
        self._slots = tuple(map(self._names.get, _PARTS))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return nn.Sequential(*list(self)[index])
        return super().__getitem__(index)

    def part(self, name: str) -> Optional[nn.Module]:
        """The module that currently is 'conv', 'norm', 'act' or 'pool'; None if there is none."""
        return self._modules.get(self._names.get(name))

    def forward(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        """[B, C, H, W] -> ``act(norm(conv(pool(x))) + residual)``."""
        module = self._modules.get
        pool, conv, norm, act = self._slots
        if pool is not None:
            x = module(pool)(x)
        return run_together(x, module(conv), module(norm), module(act), residual)


class FusedConvModule(ConvModule):
    """mmcv's ``ConvModule``, with its modules fused at inference.

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
        return run_together(x, self.conv, self.norm if norm and self.with_norm else None,
                            self.activate if activate and self.with_activation else None)


def conv_norm_act(in_channels: int, out_channels: int, kernel_size, norm_cfg: Optional[dict],
                  act_cfg: Optional[dict], **conv_options) -> ConvNormAct:
    """Convolution, norm (BN unless ``norm_cfg`` says otherwise) and activation.

    ``ConvModule`` would do, but it warns about every convolution bias before a norm, and some of
    the published layers have one.
    """
    return ConvNormAct(nn.Conv2d(in_channels, out_channels, kernel_size, **conv_options),
                       build_norm(norm_cfg, out_channels),
                       None if act_cfg is None else build_activation_layer(act_cfg))
