from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.registry import MODELS


@MODELS.register_module()
class PyConvResNet(ContextResNet):
    """ResNet with pyramidal convolutions of 4, 3, 2 and 1 levels in its four stages.

    From "Pyramidal Convolution: Rethinking Convolutional Neural Networks for Visual
    Recognition", https://arxiv.org/abs/2006.11538. The stem has no pool; instead, the first stage
    has a stride, and the shortcuts of first blocks have a 3x3 max-pool.

    Args: as for :class:`ContextResNet`; ``depth`` is 18, 34, 50, 101 or 152. 18 and 34 have no 1x1
        convolution before the pyramid and no expansion.
    """

    arch_settings = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }
    strides = (2, 2, 2, 2)
    max_pool = False
    shortcut_pool = 'max'
    # Groups of the levels, per stage.
    pyramid_groups = ((1, 4, 8, 16), (1, 4, 8), (1, 4), (1, ))

    def __init__(self, depth: int, **kwargs) -> None:
        self.reduce = depth not in (18, 34)
        super().__init__(depth, **kwargs)

    def _output_expansion(self) -> int:
        return self.expansion if self.reduce else 1

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        return {'type': 'mmcontext.PyConv2d', 'groups': self.pyramid_groups[stage],
                **self.layer_cfg}


@MODELS.register_module()
class PyConvHGResNet(PyConvResNet):
    """PyConvResNet with high grouping: twice the width at the pyramids, 32 or 64 groups.

    From https://arxiv.org/abs/2006.11538.

    Args: as for :class:`ContextResNet`; ``depth`` is 50, 101 or 152.
    """

    arch_settings = {depth: PyConvResNet.arch_settings[depth] for depth in (50, 101, 152)}
    pyramid_groups = ((32, 32, 32, 32), (32, 64, 64), (32, 64), (32, ))

    def _width(self, stage: int) -> int:
        return 2 * super()._width(stage)
