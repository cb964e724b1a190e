"""Building and calling norms: in narrow branches, and for batches without statistics."""
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
    """The config of a norm, adapted to a number of channels.

    Args:
        norm_cfg: Config of any norm; None for BN. A ``num_groups`` that does not divide the
            channels, as in narrow branches, is replaced by the largest smaller number that does.
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
    """Whether its statistics are computed over several processes."""
    return (isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_available()
            and dist.is_initialized() and dist.get_world_size(norm.process_group) > 1)


def lacks_statistics(norm: nn.Module, x: Tensor) -> bool:
    """Whether a norm would take its statistics from single values of ``x``, or from none."""
    if isinstance(norm, _BatchNorm):
        return ((norm.training or norm.running_mean is None)
                and x.numel() <= x.shape[1] and not _is_synchronised(norm))
    if isinstance(norm, _InstanceNorm):
        return ((norm.training or norm.running_mean is None)
                and x.shape[2:].numel() == 1)
    return (isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels
            and x.shape[2:].numel() == 1)


def _by_running_statistics(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm with its running statistics, or their initial values: mean 0, variance 1."""
    mean, variance = getattr(norm, 'running_mean', None), getattr(norm, 'running_var', None)
    if mean is None:
        like = x if norm.weight is None else norm.weight
        mean, variance = like.new_zeros(x.shape[1]), like.new_ones(x.shape[1])
    elif norm.training:
        # The next batch may update them before the backward pass of this one has read them.
        mean, variance = mean.clone(), variance.clone()
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps)


def _call_as(norm: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``norm(x)`` with its hooks, but with ``forward`` instead of its own."""
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
    """``norm(x)`` in a process with one value per channel, or none.

    If the other processes have no values either, the variance of a single value, 0 / 0, gets into
    the running variance. This cannot be known in advance, and all processes must take part.
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

    mmengine's ``efficient_conv_bn_eval`` assumes that whatever comes before a batch norm is a
    module.
    """
    if isinstance(norm, _BatchNorm) and x.node.op != 'call_module':
        if not hasattr(x.tracer.root, _PASS):
            x.tracer.root.add_module(_PASS, nn.Identity())
        x = x.tracer.create_proxy('call_module', _PASS, (x, ), {})
    return norm(x)


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, also for a batch that has no statistics.

    A single value per channel (one image before a batch norm of pooled features, one spatial
    position before an instance norm) has no variance, and torch raises an error in training; with
    no value at all the running statistics become NaN. Such a batch is normalised with the running
    statistics, without updating them, or with mean 0 and variance 1 if the norm keeps none. A
    ``SyncBatchNorm`` counts the values of all processes.

    Args:
        norm: A norm of any kind; any other module is simply called.
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
