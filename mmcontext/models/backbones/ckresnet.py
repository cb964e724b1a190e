from typing import Optional, Sequence

from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.registry import MODELS


@MODELS.register_module()
class CKResNet(ContextResNet):
    """ResNet whose 3x3 convolutions are separable FlexConvs: four levels for dense prediction.

    The CCNN keeps one resolution throughout, whereas detectors and segmentors need a pyramid.
    This is the bottleneck trunk with a continuous depth-wise kernel and a 1x1 mixer per block.
    Kernels may grow to 33 / 33 / 17 / 9 pixels in the four stages and all start as 5x5, because
    the mask crops the rest. The design is this package's own; nothing is published for it.

    Args: as for :class:`ContextResNet`, ``depth`` is 26, 50 or 101, and
        kernel_sizes: Largest kernel of each stage. Defaults to (33, 33, 17, 9).
        mask_inits: Initial sigma of the mask of each stage, in units of half a kernel.
            Defaults to (0.075, 0.075, 0.15, 0.3).
        kernel_cfg: Kernel network of all stages. Defaults to a MAGNet of width 16 with
            ``omega_0`` 100.
    """

    arch_settings = {26: (1, 2, 4, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    channels_last_from = float('inf')  # The Fourier transforms need contiguous planes.

    def __init__(self,
                 depth: int,
                 *args,
                 kernel_sizes: Sequence[int] = (33, 33, 17, 9),
                 mask_inits: Sequence[float] = (0.075, 0.075, 0.15, 0.3),
                 kernel_cfg: Optional[dict] = None,
                 **kwargs) -> None:
        num_stages = kwargs.get('num_stages', 4)
        for name, values in (('kernel_sizes', kernel_sizes), ('mask_inits', mask_inits)):
            if len(values) < num_stages:
                raise ValueError(f'{name} must have an entry for each of the {num_stages} stages, '
                                 f'got {list(values)}')
        self._stage_cfgs = [
            dict(kernel_size=size, mask_cfg=dict(init=init))
            for size, init in zip(kernel_sizes, mask_inits)
        ]
        self._kernel_cfg = kernel_cfg or dict(type='MAGNet', hidden_channels=16, omega_0=100.)
        super().__init__(depth, *args, **kwargs)

    def _spatial_cfg(self, stage: int, index: int) -> dict:
        return {
            'type': 'mmcontext.SeparableFlexConv2d', 'bias': False,
            'kernel_cfg': self._kernel_cfg, **self._stage_cfgs[stage], **self.layer_cfg
        }
