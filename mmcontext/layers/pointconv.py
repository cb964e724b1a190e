"""Continuous convolutions on point clouds."""
import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from mmcontext.registry import MODELS

# As in flexconv.py.
_INIT_BOX_SIGMAS = 1.667


class Neighbours(NamedTuple):
    """Nearest neighbours of every point.

    Attributes:
        index: Their numbers [B, N, K].
        offset: The point's position minus theirs, [B, N, K, D].
    """
    index: Tensor
    offset: Tensor


def nearest(positions: Tensor, count: int) -> Neighbours:
    """The ``count`` nearest points of every point, itself included.

    Args:
        positions: [B, N, D].
        count: Neighbours K.

    Raises:
        ValueError: There are fewer than ``count`` points.
    """
    if positions.shape[1] < count:
        raise ValueError(f'num_neighbours={count} needs as many points, got shape '
                         f'{tuple(positions.shape)}')
    index = torch.cdist(positions, positions).topk(count, dim=2, largest=False).indices
    batch = torch.arange(positions.shape[0], device=positions.device)[:, None, None]
    return Neighbours(index, positions[:, :, None] - positions[batch, index])


@MODELS.register_module()
class PointCKConv(nn.Module):
    """Separable continuous convolution over the nearest neighbours of every point.

    y[n] = mixer(sum over neighbours j of x[j] * kernel(p[n] - p[j])), the kernel a small network
    on offsets (CKConv, arXiv 2102.02611; on point clouds CCNN, arXiv 2206.03398).

    Args:
        in_channels (int): Channels of the input.
        out_channels (int, optional): Channels of the output. None means ``in_channels``.
        num_neighbours (int): Points in the sum, including the point itself. Defaults to 256.
        kernel_cfg (dict, optional): Kernel network, see ``mmcontext.layers.kernel_nets``.
            Defaults to ``dict(type='MAGNet', hidden_channels=32, num_layers=3, omega_0=50.)``.
        bias (bool): Bias of the mixer. Defaults to True.
        position_dim (int): Coordinates of a position. Defaults to 3.

    Shape: [B, in_channels, N] and :class:`Neighbours` to [B, out_channels, N].

    Raises:
        ValueError: ``num_neighbours`` is not positive.
    """

    # Features are [B, C, N] as for a sequence: the other layers that a CCNN builds have one axis.
    dim = 1

    def __init__(self, in_channels: int, out_channels: Optional[int] = None,
                 num_neighbours: int = 256, kernel_cfg: Optional[dict] = None,
                 bias: bool = True, position_dim: int = 3) -> None:
        super().__init__()
        if num_neighbours < 1:
            raise ValueError(f'num_neighbours must be at least 1, got {num_neighbours!r}')
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.num_neighbours = num_neighbours
        # Set by the network for the duration of a forward pass.
        self.neighbours: Optional[Neighbours] = None
        self.kernel_net = MODELS.build({
            '_scope_': 'mmcontext', 'type': 'MAGNet', 'hidden_channels': 32, 'num_layers': 3,
            'omega_0': 50., **self._kernel_defaults(), **(kernel_cfg or {}),
            'dim': position_dim, 'out_channels': in_channels})
        with torch.no_grad():
            # The output's variance must not grow with the number of neighbours.
            self.kernel_net.output_linear.weight.div_(math.sqrt(num_neighbours))
        self.channel_mixer = nn.Conv1d(in_channels, self.out_channels, 1, bias=bias)
        nn.init.kaiming_uniform_(self.channel_mixer.weight, nonlinearity='linear')
        if bias:
            nn.init.zeros_(self.channel_mixer.bias)

    def _kernel_defaults(self) -> dict:
        return {}

    def kernel(self, offset: Tensor) -> Tensor:
        """Kernel values [..., in_channels] at offsets [..., D]."""
        return self.kernel_net(offset.flatten(0, -2)).unflatten(0, offset.shape[:-1])

    def forward(self, x: Tensor, neighbours: Optional[Neighbours] = None) -> Tensor:
        """[B, in_channels, N] -> [B, out_channels, N]."""
        neighbours = self.neighbours if neighbours is None else neighbours
        if neighbours is None:
            raise ValueError(f'{type(self).__name__} needs neighbours, see nearest()')
        if x.dim() != 3 or x.shape[1] != self.in_channels:
            raise ValueError(f'the input of {type(self).__name__} must be [B, {self.in_channels}, '
                             f'N], got shape {tuple(x.shape)}')
        batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
        values = x.transpose(1, 2)[batch, neighbours.index]
        kernel = self.kernel(neighbours.offset)
        y = torch.einsum('bnkc,bnkc->bcn', values, kernel.to(values.dtype))
        return self.channel_mixer(y)

    def extra_repr(self) -> str:
        return (f'{self.in_channels}, {self.out_channels}, '
                f'num_neighbours={self.num_neighbours}')


@MODELS.register_module()
class PointFlexConv(PointCKConv):
    """:class:`PointCKConv` under a Gaussian mask of the distance with one learned sigma.

    Args:
        mask_cfg (dict, optional): ``init``, the initial sigma. Defaults to 0.075.
        Others: See :class:`PointCKConv`.

    Raises:
        ValueError: ``mask_cfg`` has another key, or ``init`` is not positive.
    """

    def __init__(self, *args, mask_cfg: Optional[dict] = None, **kwargs) -> None:
        mask = {'init': 0.075, **(mask_cfg or {})}
        if set(mask) != {'init'} or not mask['init'] > 0:
            raise ValueError(f'mask_cfg must have init > 0 alone, got {mask_cfg!r}')
        self._init_box = _INIT_BOX_SIGMAS * mask['init']
        super().__init__(*args, **kwargs)
        self.mask_width = nn.Parameter(torch.tensor([float(mask['init'])]))

    def _kernel_defaults(self) -> dict:
        return {'init_box': self._init_box}

    def kernel(self, offset: Tensor) -> Tensor:
        """Kernel values [..., in_channels] at offsets [..., D]."""
        mask = torch.exp(-0.5 * (offset / self.mask_width).square().sum(-1, keepdim=True))
        return super().kernel(offset) * mask
