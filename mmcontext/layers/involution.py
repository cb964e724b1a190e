from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn

from mmcontext.layers._geometry import DynamicKernelLayer
from mmcontext.layers._modules import is_plain
from mmcontext.layers.conv_norm import conv_norm_act, run_together
from mmcontext.ops import fused_involution, local_aggregation
from mmcontext.ops.arguments import IntPair
from mmcontext.ops.avg_pool import avg_pool2d
from mmcontext.ops.local_aggregation.by_rows import span_by_rows, wants_rows
from mmcontext.ops.tracing import is_symbolic
from mmcontext.registry import MODELS


@MODELS.register_module()
class Involution2d(DynamicKernelLayer):
    """Involution: every pixel computes the kernel that aggregates its neighbourhood.

    From "Involution: Inverting the Inherence of Convolution for Visual Recognition",
    https://arxiv.org/abs/2103.06255. A drop-in replacement for ``Conv2d``, also as ``conv_cfg``
    and as ``dcn``.

    Args:
        in_channels: Channels of the input, divisible by ``group_channels`` and
            ``reduction_ratio``.
        out_channels: Channels of the output; if other than ``in_channels``, a 1x1 convolution
            follows the aggregation. None for ``in_channels``.
        kernel_size: Size of the neighbourhood. Defaults to 7.
        stride: Step in input pixels; the kernels are computed from an average pool of that
            stride. Defaults to 1.
        padding: Zeros on each side; None keeps the size at stride 1.
        dilation: Distance between two taps. Defaults to 1.
        groups: Must be 1; the sharing of kernels is set by ``group_channels``.
        bias: Whether to add a bias to the output. Defaults to False.
        group_channels: Channels that share a kernel. Defaults to 16.
        reduction_ratio: Reduction of the width in the kernel branch. Defaults to 4.
        norm_cfg: Norm of the kernel branch, see :func:`mmcontext.layers.norms.fit_norm_cfg`.
            Defaults to BN.
        act_cfg: Activation of the kernel branch. Defaults to ReLU.
        kernel_size_override: Kernel size used instead of ``kernel_size``, for callers that
            dictate it; the output size does not change.
        fused: Compute the kernels within the aggregation, a few megabytes at a time, and never
            store them: the same results with less memory and, in training, one more pass of the
            1x1 convolution that makes them. If ``span`` has hooks or has been changed it is
            called, as without this option. Defaults to False.

    Shape: [B, in_channels, H, W] -> [B, out_channels, Ho, Wo], sizes as for ``Conv2d``.

    Raises:
        ValueError: ``in_channels`` is not divisible as required.
    """

    _reduce_bias = False

    def __init__(self, in_channels: int, out_channels: Optional[int] = None,
                 kernel_size: IntPair = 7, stride: IntPair = 1,
                 padding: Optional[IntPair] = None, dilation: IntPair = 1, groups: int = 1,
                 bias: bool = False, group_channels: int = 16, reduction_ratio: int = 4,
                 norm_cfg: Optional[dict] = None, act_cfg: Optional[dict] = None,
                 kernel_size_override: Optional[IntPair] = None, fused: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation,
                         groups, bias, kernel_size_override)
        for name, divisor in (('group_channels', group_channels),
                              ('reduction_ratio', reduction_ratio)):
            if not isinstance(divisor, int) or divisor < 1 or in_channels % divisor:
                raise ValueError(f'in_channels={in_channels} of {type(self).__name__} is not '
                                 f'divisible by {name}={divisor!r}')
        self.kernel_groups = in_channels // group_channels
        reduced = in_channels // reduction_ratio
        self.reduce = conv_norm_act(in_channels, reduced, 1, norm_cfg,
                                    act_cfg or dict(type='ReLU'), bias=self._reduce_bias)
        self.span = nn.Conv2d(reduced, self.kernel_groups * self._taps, 1)
        self.fused = fused

    @property
    def _taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    def _centres(self, x: Tensor) -> Tensor:
        """Features [B, C, Ho, Wo] at the output pixels: cropped to these, then pooled."""
        crop = []
        for pad, kernel, dilation in zip(self.padding, self.kernel_size, self.dilation):
            lost = dilation * (kernel - 1) - 2 * pad
            crop.append((lost // 2, lost - lost // 2))
        (top, bottom), (left, right) = crop
        if not is_symbolic(x) and (x.shape[2] <= top + bottom or x.shape[3] <= left + right):
            raise ValueError(f'the input of {type(self).__name__} must be larger than '
                             f'{(top + bottom, left + right)} for kernel_size {self.kernel_size}, '
                             f'padding {self.padding} and dilation {self.dilation}, got shape '
                             f'{tuple(x.shape)}')
        if any((top, bottom, left, right)):
            x = F.pad(x, (-left, -right, -top, -bottom))
        if self.stride != (1, 1):
            # With ceil_mode an odd last row or column gets a kernel too.
            x = avg_pool2d(x, self.stride, self.stride, ceil_mode=True)
        return x

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels [B, G, K*K, Ho, Wo] of an input [B, in_channels, H, W]."""
        # (Not by attribute, for which nn.Module would search all its dictionaries.)
        reduce, span = self._modules['reduce'], self._modules['span']
        r = reduce(self._centres(x))
        if wants_rows(r) and is_plain(span, nn.Conv2d):
            w = span_by_rows(r, *span._parameters.values())
        else:
            w = run_together(r, span)
        # (Not unflatten, after which the ONNX exporter makes all sizes constants.)
        return w.view(w.shape[0], self.kernel_groups, self._taps, w.shape[2], w.shape[3])

    def values(self, x: Tensor) -> Tensor:
        """What is aggregated, [B, in_channels, H, W]."""
        return x

    def gate_values(self, x: Tensor) -> Optional[Tensor]:
        """Factors for the aggregated channels, [B, in_channels, 1, 1]; None for 1."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, Ho, Wo]."""
        self.check_input(x)
        if self.fused and not is_symbolic(x) and is_plain(self.span, nn.Conv2d):
            gate = self.gate_values(x)
            y = fused_involution(x, self.reduce(self._centres(x)), self.span.weight.flatten(1),
                                 self.span.bias, self.kernel_size, self.stride, self.padding,
                                 self.dilation, None if gate is None else gate.flatten(1))
            return self.finish(y)
        y = local_aggregation(self.values(x), self.kernels(x), self.kernel_size, self.stride,
                              self.padding, self.dilation, share='block')
        return self.finish(y)
