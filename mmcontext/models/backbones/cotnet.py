from torch import nn

from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.registry import MODELS


@MODELS.register_module()
class CoTNet(ContextResNet):
    """ResNet with contextual transformer layers instead of its 3x3 convolutions.

    From "Contextual Transformer Networks for Visual Recognition",
    https://arxiv.org/abs/2107.12292.

    Args: as for :class:`ContextResNet`; ``depth`` is 50 or 101.
    """

    arch_settings = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    zero_init_residual = True
    conv_init = 'mmcontext.KaimingTorchBias'

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        return {'type': 'mmcontext.CoT2d', 'norm_cfg': self.norm_cfg, **self.layer_cfg}


@MODELS.register_module()
class CoTNeXt(CoTNet):
    """CoTNet with cardinality 2 and base width 48: "CoTNeXt (2x48d)".

    From https://arxiv.org/abs/2107.12292.

    Args: as for :class:`ContextResNet`; ``depth`` is 50 or 101.
    """

    cardinality = 2
    base_width = 48

    def _width(self, stage: int) -> int:
        return super()._width(stage) * self.base_width // 64 * self.cardinality

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        return {'cardinality': self.cardinality, **super()._spatial_cfg(stage, index)}


@MODELS.register_module()
class SECoTNetD(CoTNet):
    """CoTNet with a deep stem, pooled shortcuts, and split attention in the early stages.

    From https://arxiv.org/abs/2107.12292. Stages 1 and 2 have split-attention convolutions,
    stage 3 alternates them with contextual transformer layers, stage 4 has only the latter.
    The stem has no pool; instead, the first stage has a stride. With depth 152 every stride is a
    blur pool after the spatial layer.

    Args: as for :class:`ContextResNet`; ``depth`` is 50, 101 or 152. ``layer_cfg`` goes to the
        contextual transformer layers.
    """

    arch_settings = {**CoTNet.arch_settings, 152: (3, 8, 36, 3)}
    strides = (2, 2, 2, 2)
    max_pool = False
    shortcut_pool = 'avg'

    def __init__(self, depth: int, **kwargs) -> None:
        self.blur_strides = depth == 152
        super().__init__(depth, **kwargs)

    def _stem_width(self) -> int:
        return self.base_channels // 2 if self.depth == 50 else self.base_channels

    def _stem_out_channels(self) -> int:
        return 2 * self._stem_width()

    def _make_stem(self, in_channels: int) -> nn.Sequential:
        width = self._stem_width()
        return nn.Sequential(
            self._conv_norm_act(in_channels, width, 3, stride=2, padding=1),
            self._conv_norm_act(width, width, 3, padding=1),
            self._conv_norm_act(width, 2 * width, 3, padding=1))

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        if stage == 3 or (stage == 2 and index % 2 == 0):
            return super()._spatial_cfg(stage, index)
        return dict(type='mmcontext.SplitAttention2d', norm_cfg=self.norm_cfg)
