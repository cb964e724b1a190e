from typing import Optional

import torch
from torch import Tensor, nn

from mmcontext.layers._geometry import DynamicKernelLayer, IntPair, same_padding
from mmcontext.layers._modules import is_plain
from mmcontext.layers.conv_norm import ConvNormAct, conv_norm_act, run_together
from mmcontext.layers.norms import build_norm
from mmcontext.layers.pooled_logits import gate_by_logits
from mmcontext.ops.avg_pool import avg_pool2d
from mmcontext.ops.group_norm import group_norm
from mmcontext.ops.local_aggregation.by_rows import span_by_rows, wants_rows
from mmcontext.ops.local_aggregation.in_parts import aggregate_in_parts
from mmcontext.ops.pair_conv import join_maps, products
from mmcontext.registry import MODELS

_SHARE_CHANNELS = 8
_KEY_GROUPS = {1: 4, 2: 8}


@MODELS.register_module()
class CoT2d(DynamicKernelLayer):
    """Contextual transformer layer: static context from a convolution, dynamic context from
    kernels computed from the input and that convolution, fused by split attention.

    From "Contextual Transformer Networks for Visual Recognition",
    https://arxiv.org/abs/2107.12292. ``cardinality=2`` is the CoXt layer of CoTNeXt. Replaces a
    convolution together with its norm and activation, also as ``conv_cfg`` and as ``dcn``.

    Args:
        in_channels: Channels of the input, divisible by 8 * ``cardinality``.
        out_channels: Channels of the output; if other than ``in_channels``, a 1x1 convolution
            is added at the end. None for ``in_channels``.
        kernel_size: Odd size of the neighbourhood. Defaults to 3.
        stride: Step in input pixels; if above 1, a 3x3 average pool of that stride (padding 1,
            counted in the mean) comes before the layer. Defaults to 1.
        padding: Must keep the size at stride 1; None for that padding.
        dilation: Distance between two taps. Defaults to 1.
        groups: Must be 1.
        bias: Whether to add a bias to the output. Defaults to False.
        cardinality: 1 for CoT, 2 for CoXt. Defaults to 1.
        norm_cfg: Norm of key, value, embeddings and attention, see
            :func:`mmcontext.layers.norms.fit_norm_cfg`. Defaults to BN. (The kernels have a group
            norm of their own.)
        kernel_size_override: Kernel size used instead of ``kernel_size``, for callers that
            dictate it; the output size does not change.

    Shape: [B, in_channels, H, W] -> [B, out_channels, Ho, Wo], sizes as for ``Conv2d``.

    Raises:
        ValueError: ``in_channels`` is not divisible as required, or the kernel is even, or the
            padding changes the size.
    """

    normalised = True

    def __init__(self, in_channels: int, out_channels: Optional[int] = None,
                 kernel_size: IntPair = 3, stride: IntPair = 1,
                 padding: Optional[IntPair] = None, dilation: IntPair = 1, groups: int = 1,
                 bias: bool = False, cardinality: int = 1, norm_cfg: Optional[dict] = None,
                 kernel_size_override: Optional[IntPair] = None) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, bias, kernel_size_override)
        if cardinality not in _KEY_GROUPS:
            raise ValueError(f'cardinality of CoT2d must be 1 or 2, got {cardinality!r}')
        if in_channels % (_SHARE_CHANNELS * cardinality):
            raise ValueError(f'in_channels of CoT2d with cardinality {cardinality} must be '
                             f'divisible by {_SHARE_CHANNELS * cardinality}, got {in_channels}')
        if any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f'kernel_size of CoT2d must be odd, got {self.kernel_size}')
        if self.padding != same_padding(self.kernel_size, self.dilation):
            raise ValueError(
                f'padding of CoT2d must keep the size, '
                f'{same_padding(self.kernel_size, self.dilation)} for kernel_size '
                f'{self.kernel_size} and dilation {self.dilation}, got {self.padding}')
        self.cardinality = cardinality
        half = in_channels // 2
        kernel_groups = in_channels // _SHARE_CHANNELS
        taps = self.kernel_size[0] * self.kernel_size[1]
        relu = dict(type='ReLU')
        self.key = conv_norm_act(in_channels, in_channels, self.kernel_size, norm_cfg, relu,
                                 padding=self.padding, dilation=self.dilation,
                                 groups=_KEY_GROUPS[cardinality], bias=False)
        self.embed = conv_norm_act(2 * in_channels, half, 1, norm_cfg, relu, groups=cardinality,
                                   bias=False)
        self.value = conv_norm_act(in_channels, in_channels, 1, norm_cfg, None,
                                   groups=cardinality, bias=False)
        self.norm = build_norm(norm_cfg, in_channels)
        self.act = nn.SiLU()
        # After self.norm: mmcv's fuse_conv_bn assumes that a norm belongs to the preceding
        # convolution.
        self.span = nn.Conv2d(half, kernel_groups * taps, 1, groups=cardinality)
        self.span_norm = nn.GroupNorm(kernel_groups, kernel_groups * taps)
        attention = max(half, 32)
        self.attend = nn.Sequential(conv_norm_act(in_channels, attention, 1, norm_cfg, relu),
                                    nn.Conv2d(attention, 2 * in_channels, 1))
        self._kernel_shape = (kernel_groups, taps)

    def _embed(self, x: Tensor, key: Tensor) -> Tensor:
        """The embedding [B, C / 2, H, W] of both, without concatenation where that is faster."""
        embed = self._modules['embed']
        conv = embed.part('conv')
        if (type(x) is Tensor and is_plain(embed, ConvNormAct) and is_plain(conv, nn.Conv2d)
                and conv.bias is None):
            y = products(x, key, conv._parameters['weight'], self.cardinality)
            if y is not None:
                return run_together(y, None, embed.part('norm'), embed.part('act'))
        return embed(join_maps(x, key, self.cardinality))

    def _kernels(self, r: Tensor) -> Tensor:
        """The kernels [B, groups * taps, H, W] of an embedding."""
        span, norm = self._modules['span'], self._modules['span_norm']
        if not (wants_rows(r) and r.shape[2] * r.shape[3] > 1 and is_plain(span, nn.Conv2d)
                and is_plain(norm, nn.GroupNorm)):
            return run_together(r, span, norm)
        weight = span.weight.flatten(1)
        if span.groups > 1:
            weight = torch.block_diag(*weight.chunk(span.groups))
        return group_norm(span_by_rows(r, weight, span.bias), norm.num_groups, norm.weight,
                          norm.bias, norm.eps)

    def _aggregate(self, value: Tensor, kernels: Tensor) -> Tensor:
        # (Not unflatten, after which the ONNX exporter makes all sizes constants.)
        w = kernels.view(kernels.shape[0], *self._kernel_shape, kernels.shape[2],
                         kernels.shape[3])
        return aggregate_in_parts(value, w, self.cardinality, self.kernel_size,
                                  padding=self.padding, dilation=self.dilation,
                                  share='interleaved')

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, Ho, Wo]."""
        self.check_input(x)
        if self.stride != (1, 1):
            x = avg_pool2d(x, 3, self.stride, padding=1)
        # (Not by attribute, for which nn.Module would search all its dictionaries.)
        modules = self._modules
        key = modules['key'](x)
        kernels = self._kernels(self._embed(x, key))
        dynamic = run_together(self._aggregate(modules['value'](x), kernels),
                               norm=modules['norm'], act=modules['act'])
        return self.finish(gate_by_logits(dynamic, modules['attend'], key))
