from typing import Tuple

from torch import Tensor

from mmcontext.layers.pointconv import PointCKConv, nearest
from mmcontext.models.backbones.ccnn import CCNN
from mmcontext.registry import MODELS


@MODELS.register_module()
class PointCCNN(CCNN):
    """Continuous CNN on point clouds: every layer convolves over the nearest points.

    From arXiv 2206.03398. The neighbours are computed once, from the positions.

    Args: as for :class:`CCNN`; ``conv_cfg`` is a ``PointFlexConv`` (the default) or a
        ``PointCKConv``, ``pools`` has no meaning, and
        in_channels (int): Features of a point, with its position last. Defaults to 6: normal and
            position.

    Shape: [B, in_channels, N] -> one tensor [B, channels, N] in a tuple.
    """

    def __init__(self, in_channels: int = 6, *args,
                 conv_cfg: dict = dict(type='PointFlexConv'), **kwargs) -> None:
        super().__init__(in_channels, *args, conv_cfg=conv_cfg, **kwargs)
        self._layers = [m for m in self.modules() if isinstance(m, PointCKConv)]
        if not self._layers or self.pools:
            raise ValueError(f'PointCCNN takes a point convolution and no pools, got conv_cfg '
                             f'{conv_cfg!r} and pools {sorted(self.pools)}')

    def forward(self, x: Tensor) -> Tuple[Tensor]:
        """Features [B, in_channels, N] of the points."""
        dim = self._layers[0].kernel_net.dim
        neighbours = nearest(x[:, -dim:].transpose(1, 2).detach(), self._layers[0].num_neighbours)
        try:
            for layer in self._layers:
                layer.neighbours = neighbours
            return super().forward(x)
        finally:
            for layer in self._layers:
                layer.neighbours = None
