from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from mmcontext.layers.conv_norm import run_together
from mmcontext.layers.norms import build_norm
from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.registry import MODELS


class _Stem(nn.Sequential):
    """Convolution, spatial layer with its norm and activation, convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / 2, W / 2]."""
        reduce, spatial, norm, act, expand = self
        return expand(run_together(reduce(x), spatial, norm, act))


@MODELS.register_module()
class RedNet(ContextResNet):
    """ResNet with involutions: 3x3 in the stem, 7x7 instead of its 3x3 convolutions.

    From "Involution: Inverting the Inherence of Convolution for Visual Recognition",
    https://arxiv.org/abs/2103.06255.

    Args: as for :class:`ContextResNet`; ``depth`` is 26, 38, 50, 101 or 152. ``base_channels``
        must be a multiple of 32, since the stem's involution has half as many.
    """

    arch_settings = {
        26: (1, 2, 4, 1),
        38: (2, 3, 5, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }
    layer_type = 'mmcontext.Involution2d'
    stem_kernel_size = 3
    zero_init_residual = True

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        return {'type': self.layer_type, 'norm_cfg': self.norm_cfg, **self.layer_cfg}

    def _make_stem(self, in_channels: int) -> nn.Sequential:
        width = self.base_channels // 2
        return _Stem(
            self._conv_norm_act(in_channels, width, 3, stride=2, padding=1),
            MODELS.build({
                **self._spatial_cfg(-1, 0), 'in_channels': width,
                'kernel_size': self.stem_kernel_size
            }),
            build_norm(self.norm_cfg, width),
            build_activation_layer(self.act_cfg),
            self._conv_norm_act(width, self.base_channels, 3, padding=1))


@MODELS.register_module()
class CedNet(RedNet):
    """ResNet with 7x7 C-volutions in the stem and instead of its 3x3 convolutions.

    From "C-volution: A Hybrid Operator for Visual Recognition", PRCV 2023.

    Args: as for :class:`RedNet`.
    """

    layer_type = 'mmcontext.CVolution2d'
    stem_kernel_size = 7
