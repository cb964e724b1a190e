"""Norms as the layers build and call them: in narrow branches, and where there is no statistic."""
from typing import Callable, Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from mmcontext.layers._modules import is_touched
from mmcontext.ops.tracing import is_symbolic

_PASS = '_before_norm'


def fit_norm_cfg(norm_cfg: Optional[dict], channels: int) -> dict:
    """The config of a norm over that many channels.

    Args:
        norm_cfg: Config of any norm; None for BN. ``num_groups`` that does not divide the
            channels, as in narrow branches, gives way to the largest number below that does.
        channels: Channels of the map.
    """
    cfg = dict(norm_cfg or dict(type='BN'))
    groups = cfg.get('num_groups')
    if isinstance(groups, int) and groups > 0:
        cfg['num_groups'] = next(n for n in range(min(groups, channels), 0, -1)
                                 if channels % n == 0)
    return cfg


def build_norm(norm_cfg: Optional[dict], channels: int) -> nn.Module:
    """The norm of :func:`fit_norm_cfg`."""
    return build_norm_layer(fit_norm_cfg(norm_cfg, channels), channels)[1]


def _is_synchronised(norm: _BatchNorm) -> bool:
    """Whether its statistics are those of several processes."""
    return (isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_available()
            and dist.is_initialized() and dist.get_world_size(norm.process_group) > 1)


def lacks_statistics(norm: nn.Module, x: Tensor) -> bool:
    """Whether a norm that takes statistics from ``x`` would find single values, or none."""
    if isinstance(norm, _BatchNorm):
        return ((norm.training or norm.running_mean is None)
                and x.numel() <= x.shape[1] and not _is_synchronised(norm))
    if isinstance(norm, _InstanceNorm):
        return ((norm.training or norm.running_mean is None)
                and x.shape[2:].numel() == 1)
    return (isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
            and x.shape[2:].numel() == 1)


def _by_running_statistics(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm by its running statistics, or by those it would start from: mean 0, variance 1."""
    mean, variance = getattr(norm, 'running_mean', None), getattr(norm, 'running_var', None)
    if mean is None:
        like = x if norm.weight is None else norm.weight
        mean, variance = like.new_zeros(x.shape[1]), like.new_ones(x.shape[1])
    elif norm.training:
        # The next batch may move them before the backward of this one has read them.
        mean, variance = mean.clone(), variance.clone()
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps)


def _call_as(norm: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``norm(x)``, hooks and all, with ``forward`` in place of its own."""
    if not is_touched(norm):
        return forward(x)
    before = norm.__dict__.get('forward')
    norm.forward = forward
    try:
        return norm(x)
    finally:
        if before is None:
            del norm.forward
        else:
            norm.forward = before


def _synchronised(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """``norm(x)`` of a process with one value a channel, or none.

    If the other processes have no values either, the variance of the single one, 0 / 0, gets into
    the running variance. That cannot be known before, and all processes must take part.
    """
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    y = norm(x)
    if norm.running_var is not None and not norm.running_var.isfinite().all():
        with torch.no_grad():
            for name, buffer in norm.named_buffers():
                buffer.copy_(before[name])
    return y


def _traced(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)`` in a graph of ``torch.fx``.

    mmengine's ``efficient_conv_bn_eval`` takes whatever comes before a batch norm for a
    module.
    """
    if isinstance(norm, _BatchNorm) and x.node.op != 'call_module':
        if not hasattr(x.tracer.root, _PASS):
            x.tracer.root.add_module(_PASS, nn.Identity())
        x = x.tracer.create_proxy('call_module', _PASS, (x, ), {})
    return norm(x)


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, also of a batch that has no statistics.

    One value a channel (one image before a batch norm of pooled features, one spatial
    position before an instance norm) has no variance, and torch raises an error in
    training; with no value it makes NaN of the running statistics. Such a batch is normalised by
    the running statistics, which it leaves as they are; by mean 0 and variance 1 where the norm
    keeps none. A ``SyncBatchNorm`` counts the values of all processes.

    Args:
        norm: A norm of any kind; another module is called as it is.
        x: [B, C, *size].
    """
    if type(x) is Tensor and x.dim() == 4 and x.shape[0] and x.shape[2] * x.shape[3] > 1:
        return norm(x)  # Every norm has statistics.
    if is_symbolic(x):
        return _traced(norm, x)
    if lacks_statistics(norm, x):
        return _call_as(norm, lambda x: _by_running_statistics(norm, x), x)
    if isinstance(norm, nn.SyncBatchNorm) and x.numel() <= x.shape[1] and _is_synchronised(norm):
        return _synchronised(norm, x)
    return norm(x)
