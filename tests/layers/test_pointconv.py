import math

import pytest
import torch
from tolerances import assert_close

from mmcontext.layers import PointCKConv, PointFlexConv
from mmcontext.layers.pointconv import nearest

CLOUD = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(layer, x, positions, count):
    """The paper's sum, neighbour by neighbour."""
    y = torch.empty(x.shape[0], layer.in_channels, x.shape[2], dtype=x.dtype)
    for b in range(x.shape[0]):
        for n in range(x.shape[2]):
            offsets = positions[b, :, n, None] - positions[b]
            total = 0
            for j in offsets.square().sum(0).argsort()[:count].tolist():
                weight = layer.kernel_net(offsets[:, j][None])[0]
                if isinstance(layer, PointFlexConv):
                    weight = weight * math.exp(
                        -0.5 * (offsets[:, j] / layer.mask_width).square().sum())
                total = total + x[b, :, j] * weight
            y[b, :, n] = total
    return torch.einsum('oc,bcn->bon', layer.channel_mixer.weight[..., 0],
                        y) + layer.channel_mixer.bias[:, None]


@pytest.mark.parametrize('kind', [PointCKConv, PointFlexConv])
def test_layer_is_the_sum_over_the_nearest_points(kind):
    torch.manual_seed(0)
    layer = kind(4, 5, num_neighbours=6, kernel_cfg=dict(hidden_channels=8, omega_0=2.)).double()
    if kind is PointFlexConv:
        torch.nn.init.constant_(layer.mask_width, 0.7)
    torch.nn.init.uniform_(layer.channel_mixer.bias)
    x = torch.randn(2, 4, 12, dtype=torch.float64, requires_grad=True)
    y = layer(x, nearest(CLOUD.transpose(1, 2), 6))
    # DOUBLE, and stricter near zero.
    assert_close(y, by_hand(layer, x, CLOUD, 6), rtol=1e-12, atol=1e-13)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in [x, *layer.parameters()])


def test_order_of_the_points_does_not_matter():
    layer = PointFlexConv(3, 4, num_neighbours=5).double()
    order = torch.randperm(12)
    y = layer(CLOUD, nearest(CLOUD.transpose(1, 2), 5))
    shuffled = CLOUD[..., order]
    # float64: the same sums, each in another order at most.
    assert_close(layer(shuffled, nearest(shuffled.transpose(1, 2), 5)), y[..., order], rtol=1e-12,
                 atol=0)


def test_output_variance_does_not_grow_with_the_neighbours():
    weights = [PointCKConv(8, num_neighbours=n).kernel_net.output_linear.weight for n in (4, 64)]
    # Random weights.
    assert (weights[0].std() / weights[1].std()).item() == pytest.approx(4, rel=0.2)


def test_wrong_arguments():
    with pytest.raises(ValueError, match='num_neighbours=13'):
        nearest(CLOUD.transpose(1, 2), 13)
    with pytest.raises(ValueError, match='init > 0'):
        PointFlexConv(4, mask_cfg=dict(init=0.))
    with pytest.raises(ValueError, match='needs neighbours'):
        PointCKConv(3)(CLOUD)
    with pytest.raises(ValueError, match='must be'):
        PointCKConv(4)(CLOUD, nearest(CLOUD.transpose(1, 2), 5))
