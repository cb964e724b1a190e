import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmcontext.engine.flops import build_model, config_complexity, count_complexity
from mmcontext.layers import CoT2d, CVolution2d, Involution2d


def flops(model: nn.Module, *shape: int) -> dict:
    return count_complexity(model, (torch.zeros(1, *shape), )).by_operator


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_involution(stride, fused):
    pixels = (12 // stride) * (20 // stride)
    counts = flops(Involution2d(32, kernel_size=7, stride=stride, fused=fused), 32, 12, 20)
    assert counts == {
        'conv': pixels * (32 * 8 + 8 * 49 * 2),
        'local_aggregation': pixels * 32 * 49,
    }


def test_cvolution_counts_the_convolution_of_its_gate():
    layer = CVolution2d(32, kernel_size=7, gate_groups=16)
    involution = flops(Involution2d(32, kernel_size=7), 32, 12, 20)
    counts = flops(layer, 32, 12, 20)
    # 3x3 with padding 3: the output is 4 larger than the input.
    assert counts['conv'] - involution['conv'] == 16 * 24 * 32 * 2 * 9
    assert counts['local_aggregation'] == involution['local_aggregation']
    # and the layer still has its shortcut afterwards
    assert 'gate_values' not in vars(layer)


def test_cot_aggregates_nine_neighbours():
    assert flops(CoT2d(64), 64, 10, 10)['local_aggregation'] == 100 * 64 * 9


def test_norms_and_pools_count_nothing():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode='bilinear'), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5))
    counts = count_complexity(model, (torch.zeros(1, 3, 6, 6), ))
    assert counts.by_operator == {'conv': 36 * 3 * 8 * 9, 'linear': 40}
    assert counts.flops == 36 * 3 * 8 * 9 + 40
    assert counts.params == 8 * 27 + 8 + 16 + 16 + 45
    assert counts.training_params == 0


def test_auxiliary_heads_are_told_apart():
    model = nn.Module()
    model.body = nn.Linear(4, 4)
    model.auxiliary_head = nn.Linear(4, 2)
    model.forward = model.body.forward
    counts = count_complexity(model, (torch.zeros(1, 4), ))
    assert (counts.params, counts.training_params, counts.flops) == (30, 10, 16)


def test_config_of_no_network():
    with pytest.raises(ValueError, match='has no model'):
        config_complexity(Config(dict(default_scope='mmengine')), (8, 8))


def test_sync_norms_become_plain_ones():
    cfg = Config(dict(default_scope='mmengine', model=dict(
        type='mmcontext.CoResNet', depth=50, base_channels=16, norm_cfg=dict(type='SyncBN'))))
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in build_model(cfg).modules())
