from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.registry import MODELS


@MODELS.register_module()
class CoResNet(ContextResNet):
    """ResNet with contextual convolutions of 4, 3, 2 and 1 levels in its four stages.

    From "Contextual Convolutional Neural Networks", https://arxiv.org/abs/2108.07387. In the
    last block of every stage the last norm comes after the addition.

    Args: as for :class:`ContextResNet`; ``depth`` is 50, 101 or 152.
    """

    arch_settings = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    norm_after_add_at_stage_end = True

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        return dict(type='mmcontext.CoConv2d', levels=4 - stage, **self.layer_cfg)
