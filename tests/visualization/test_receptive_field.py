import pytest
import torch
from torch import nn

from mmcontext.models.backbones import RedNet
from mmcontext.visualization.networks import Network, settle
from mmcontext.visualization.receptive_field import (
    areas,
    effective_receptive_field,
    square_that_holds,
    stage_features,
)
from mmcontext.visualization.receptive_field import field_of as field_of_network


def ones(*args, **kwargs):
    conv = nn.Conv2d(1, 1, *args, bias=False, **kwargs).double()
    nn.init.ones_(conv.weight)
    return conv


def field_of(*layers, size=17):
    images = [torch.randn(1, 1, size, size, dtype=torch.float64) for _ in range(2)]
    return effective_receptive_field(nn.Sequential(*layers), images)


def test_two_convolutions_make_a_triangle():
    row = torch.tensor([1., 2, 3, 2, 1], dtype=torch.float64) / 9
    expected = torch.zeros(17, 17, dtype=torch.float64)
    expected[6:11, 6:11] = row[:, None] * row
    # float64.
    assert torch.allclose(field_of(ones(3, padding=1), ones(3, padding=1)), expected, atol=1e-12)


def test_negative_gradients_do_not_count():
    conv = ones(3, padding=1)
    conv.weight.data[0, 0, 0] = -1
    expected = torch.zeros(17, 17, dtype=torch.float64)
    expected[8:10, 7:10] = 1 / 6
    assert torch.allclose(field_of(conv), expected)


def test_squares_hold_what_they_say():
    field = torch.zeros(9, 11, dtype=torch.float64)
    field[4, 5], field[4, 6], field[0, 5] = 0.5, 0.4, 0.1
    assert areas(field, (0.5, 0.9, 0.99)) == {
        0.5: (1, 1 / 99), 0.9: (3, 9 / 99), 0.99: (9, 81 / 99)}
    assert square_that_holds(torch.full((4, 6), 1 / 24), 1.) == (6, 1.)


def test_dilated_and_strided_stages_reach_further():
    side = {name: square_that_holds(field_of(*layers), 0.99)[0] for name, layers in dict(
        plain=[ones(3, padding=1)], dilated=[ones(3, padding=3, dilation=3)],
        strided=[ones(2, stride=2), ones(3, padding=1)]).items()}
    assert side['plain'] == 3 and side['dilated'] == 7 and 5 <= side['strided'] <= 7


def test_a_unit_that_sees_nothing_is_an_error():
    with pytest.raises(ValueError, match='depends on no pixel'):
        field_of(ones(3, padding=1), nn.ReLU(), nn.Threshold(1e9, 0.))


def test_an_untrained_network_takes_the_statistics_of_each_image():
    """With norms at zero there would only be the shortcuts, 2 x 2 x 3 pixels and the stem."""
    backbone = RedNet(26, base_channels=32, zero_init_residual=True).eval()
    network = Network('', None, nn.ModuleDict(dict(backbone=backbone)), trained=False)
    torch.manual_seed(0)
    network.backbone.init_weights()
    field = field_of_network(network, torch.randn(2, 3, 64, 64), stage=1)
    assert torch.isfinite(field).all() and areas(field)[0.9][0] > 30
    assert next(backbone.parameters()).dtype == torch.float32
    settle(backbone, x := 1e3 * torch.randn(2, 3, 64, 64))
    assert 0.5 < float(backbone.layer1(backbone.pool(backbone.stem(x))).std()) < 5


def test_stages_of_a_backbone():
    from mmcontext.models.backbones import CoResNet
    backbone = CoResNet(50, base_channels=8).eval()
    x = torch.zeros(1, 3, 64, 64)
    assert [stage_features(backbone, stage)(x).shape[2] for stage in (0, 2, -1)] == [16, 4, 2]
    with pytest.raises(ValueError, match='stage must be below 4'):
        stage_features(backbone, 4)(x)
