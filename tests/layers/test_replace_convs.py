import pytest
import torch
from torch import nn

from mmcontext.layers import CVolution2d, SeparableFlexConv1d, replace_convs


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
                      nn.Conv2d(32, 32, 3, padding=2, dilation=2)),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 8, 1))


@pytest.mark.parametrize('cfg', [
    dict(type='CVolution2d', gate_groups=4), dict(type='Involution2d', kernel_size=5),
    dict(type='CoT2d'), dict(type='CoConv2d'), dict(type='PyConv2d', levels=2),
    dict(type='mmcontext.SeparableFlexConv2d', kernel_size=9, mask_cfg=dict(init=0.3))],
    ids=lambda cfg: cfg['type'])
def test_chosen_convolutions_are_replaced_and_sizes_stay(cfg):
    model = network().double().eval()
    x = torch.randn(2, 3, 17, 20, dtype=torch.float64)
    shape = model(x).shape
    names = replace_convs(model, cfg, where=r'^2\.')
    assert names == ['2.0', '2.1']
    layer = model[2][1]
    assert type(layer).__name__ == cfg['type'].split('.')[-1]
    assert layer.dilation == (2, 2) and not layer.training
    y = model(x)
    assert y.shape == shape and y.dtype == torch.float64
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_own_kernel_size_unless_one_is_given():
    for options, size in ((dict(), 7), (dict(kernel_size=3), 3)):
        model = network()
        replace_convs(model, dict(type=CVolution2d, **options), where=r'^2')
        assert model[2][0].kernel_size == (size, size)


def test_a_function_decides_alone():
    model = network()
    assert replace_convs(model, dict(type='PyConv2d', levels=1, groups=[32]),
                         where=lambda name, conv: conv.groups == 32) == ['3']


def test_sequences():
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    assert replace_convs(model, dict(type='SeparableFlexConv1d')) == ['0']
    assert isinstance(model[0], SeparableFlexConv1d)
    assert model[0](torch.randn(1, 4, 20)).shape == (1, 4, 20)


@pytest.mark.parametrize('cfg, where, message', [
    (dict(type='CVolution2d'), None, '0 cannot be a CVolution2d: in_channels=3'),
    (dict(type='CVolution2d'), 'layer9', "no convolution .* chosen by where='layer9'"),
    (dict(type='CVolution9d'), None, 'names no layer'),
    ('CVolution2d', None, "cfg must be a dict with the key 'type'")])
def test_errors_are_one_sentence_and_change_nothing(cfg, where, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        replace_convs(model, cfg, where)
    assert all(type(module) in (nn.Sequential, nn.Conv2d, nn.ReLU) for module in model.modules())
