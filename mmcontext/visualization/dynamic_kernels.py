"""The kernels that involution, C-volution and CoT compute from an image."""
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from mmcontext.layers import CoT2d, Involution2d
from mmcontext.ops.conv_norm_act import channel_means
from mmcontext.ops.pair_conv import join_maps

KINDS = (Involution2d, CoT2d)


class DynamicKernels(NamedTuple):
    """Quantities that a layer computed from one image.

    Attributes:
        kernels (Tensor): [G, kh, kw, Ho, Wo]: G kernels at every pixel.
        gate (Tensor, optional): Factors of C-volution's channels, [C].
        attention (Tensor, optional): Weight of CoT's dynamic context relative to its static one,
            in [0, 1], [C].
    """
    kernels: Tensor
    gate: Optional[Tensor] = None
    attention: Optional[Tensor] = None

    @property
    def energy(self) -> Tensor:
        """Root mean square of a pixel's taps over all kernels, [Ho, Wo]."""
        return self.kernels.square().mean(dim=(0, 1, 2)).sqrt()


@torch.no_grad()
def dynamic_kernels(layer: torch.nn.Module, x: Tensor) -> DynamicKernels:
    """The kernels of a layer for its input.

    Args:
        layer: :class:`Involution2d`, :class:`CVolution2d` or :class:`CoT2d`, in eval mode.
        x: [1, in_channels, H, W].
    """
    if isinstance(layer, CoT2d):
        return _of_cot(layer, x)
    kernels = layer.kernels(x)[0]
    gate = layer.gate_values(x)
    return DynamicKernels(kernels.unflatten(1, layer.kernel_size),
                          None if gate is None else gate.flatten())


def _of_cot(layer: CoT2d, x: Tensor) -> DynamicKernels:
    if layer.stride != (1, 1):
        x = torch.nn.functional.avg_pool2d(x, 3, layer.stride, padding=1)
    key = layer.key(x)
    kernels = layer.span_norm(layer.span(layer.embed(join_maps(x, key, layer.cardinality))))
    dynamic = layer.act(layer.norm(layer._aggregate(layer.value(x), kernels)))
    both = layer.attend(channel_means(dynamic, key)).view(layer.in_channels, 2)
    return DynamicKernels(kernels[0].unflatten(0, (-1, *layer.kernel_size)),
                          attention=both.softmax(1)[:, 0])
