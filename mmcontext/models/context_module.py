"""A context operator with its normalisation and activation, as necks and heads use it."""
from typing import Optional

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcontext.layers.conv_norm import run_together
from mmcontext.layers.norms import fit_norm_cfg
from mmcontext.ops.tracing import is_symbolic
from mmcontext.registry import MODELS


class ContextModule(nn.Module):
    """Any operator that is built like a convolution, then norm, then activation.

    It is to a context operator what mmcv's ``ConvModule`` is to a convolution, and its
    parts have the same names (``conv``, ``bn`` or the like, ``activate``). The operator is
    built from ``context_cfg`` with its own defaults for everything not given there
    (kernel size, padding, inner norm), whereas ``conv_cfg`` of ``ConvModule`` would impose
    the caller's kernel size.

    An empty batch (no region of interest in an image) does not change the statistics of batch
    norms.

    Args:
        in_channels (int): channels of the input.
        out_channels (int): channels of the output.
        context_cfg (dict): the operator, such as ``dict(type='mmcontext.CVolution2d')``, and
            its arguments other than the numbers of channels.
        norm_cfg (dict, optional): norm after the operator, see
            :func:`mmcontext.layers.norms.fit_norm_cfg`. Defaults to None.
        act_cfg (dict, optional): activation at the end. Defaults to None.
        inplace (bool): whether the activation works in place. Defaults to False.

    Raises:
        TypeError: if ``context_cfg`` is not a dict with a ``type``.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 context_cfg: dict,
                 norm_cfg: Optional[dict] = None,
                 act_cfg: Optional[dict] = None,
                 inplace: bool = False) -> None:
        super().__init__()
        if not isinstance(context_cfg, dict) or 'type' not in context_cfg:
            raise TypeError("context_cfg must be a dict with the key 'type', such as "
                            f"dict(type='mmcontext.CVolution2d'), got {context_cfg!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.conv = MODELS.build(
            dict(in_channels=in_channels, out_channels=out_channels, **context_cfg))
        self.norm_name = None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm_layer(
                fit_norm_cfg(norm_cfg, out_channels), out_channels)
            self.add_module(self.norm_name, norm)
        self.activate = None
        if act_cfg is not None:
            act_cfg = dict(act_cfg)
            if act_cfg['type'] in ('ReLU', 'LeakyReLU', 'ReLU6', 'SiLU'):
                act_cfg.setdefault('inplace', inplace)
            self.activate = build_activation_layer(act_cfg)

    @property
    def norm(self) -> Optional[nn.Module]:
        """The norm after the operator, or None."""
        return getattr(self, self.norm_name) if self.norm_name else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, out_channels, H', W']``."""
        if not is_symbolic(x) and x.shape[0] == 0:
            return self._forward_empty(x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return run_together(x, self.conv, self.norm, self.activate)

    def _forward_empty(self, x: Tensor) -> Tensor:
        # An empty batch would turn a batch norm's running statistics into NaN. One blank
        # sample in eval mode preserves them, and keeps every parameter in the graph (with zero
        # gradient), which DistributedDataParallel needs. SyncBatchNorm handles an empty
        # rank itself and must still synchronise with the others, so it stays in training mode.
        norms = [m for m in self.modules() if isinstance(m, _BatchNorm) and m.training]
        if any(isinstance(m, nn.SyncBatchNorm) for m in norms):
            return self._forward(x)
        for norm in norms:
            norm.training = False
        try:
            return self._forward(torch.cat([x, x.new_zeros((1, *x.shape[1:]))]))[:0]
        finally:
            for norm in norms:
                norm.training = True
