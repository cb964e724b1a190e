"""The contents of the figures, against definitions."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcontext.layers import (
    CoConv2d,
    CoT2d,
    CVolution2d,
    Involution2d,
    SeparableFlexConv1d,
    SeparableFlexConv2d,
)
from mmcontext.utils.errors import UserError
from mmcontext.visualization import continuous_kernels, curves, zoo_points
from mmcontext.visualization.dynamic_kernels import dynamic_kernels
from mmcontext.visualization.pyramid import levels, mean_frequency


def neighbourhoods(x, size):
    """[C, k * k, H, W]"""
    return F.unfold(x, size, padding=size // 2).view(x.shape[1], size**2, *x.shape[2:])


@pytest.mark.parametrize('cls', [Involution2d, CVolution2d])
def test_shown_kernels_make_the_output(cls):
    layer = cls(32, kernel_size=5).double().eval()
    x = torch.randn(1, 32, 7, 6, dtype=torch.float64)
    made = dynamic_kernels(layer, x)
    assert made.kernels.shape == (2, 5, 5, 7, 6) and made.attention is None
    gated = x if made.gate is None else x * made.gate.view(1, -1, 1, 1)
    kernels = made.kernels.flatten(1, 2).repeat_interleave(16, 0)
    # float64, in another order of sums.
    assert torch.allclose((neighbourhoods(gated, 5) * kernels).sum(1), layer(x)[0], atol=1e-9)
    y, x = 3, 2
    assert made.energy[y, x] == pytest.approx(
        float(made.kernels[..., y, x].square().mean().sqrt()))


@pytest.mark.parametrize('stride', [1, 2])
def test_shown_attention_mixes_the_contexts_of_cot(stride):
    layer = CoT2d(32, stride=stride).double().eval()
    x = torch.randn(1, 32, 8, 8, dtype=torch.float64)
    made = dynamic_kernels(layer, x)
    pooled = x if stride == 1 else F.avg_pool2d(x, 3, stride, padding=1)
    value, key = layer.value(pooled), layer.key(pooled)
    kernels = made.kernels.flatten(1, 2)[torch.arange(32) % 4]
    dynamic = F.silu(layer.norm((neighbourhoods(value, 3) * kernels).sum(1)[None]))
    weight = made.attention.view(1, -1, 1, 1)
    assert torch.allclose(weight * dynamic + (1 - weight) * key, layer(x), atol=1e-9)  # float64


def test_levels_of_a_pyramid_are_parts_of_its_output():
    layer = CoConv2d(8, 16, levels=4)
    x = torch.randn(1, 8, 12, 12)
    found = levels(layer, x)
    assert [level.dilation for level in found] == [(d, d) for d in (1, 2, 3, 4)]
    expected = layer(x)[0].view(4, 4, 12, 12).abs().mean(1)
    # float32.
    assert torch.allclose(torch.stack([level.response for level in found]), expected, atol=1e-6)


def test_frequency_of_stripes():
    columns = torch.arange(16)
    for cycles in (1, 4, 8):
        stripes = torch.cos(2 * torch.pi * cycles * columns / 16).expand(1, 16, 16) + 3
        assert mean_frequency(stripes.double()) == pytest.approx(cycles / 16)


@pytest.mark.parametrize('causal', [False, True])
def test_samples_of_a_continuous_kernel_lie_on_one_function(causal):
    layer = SeparableFlexConv1d(4, kernel_size=9, causal=causal, mask_cfg=dict(init=0.8))
    coarse = continuous_kernels.sample(layer, 1)
    fine = continuous_kernels.sample(layer, 2)
    assert layer.resolution == 1 and fine.shape[1] == 2 * coarse.shape[1] - 1
    # Rounded coordinates times high frequencies.
    assert torch.allclose(fine[:, ::2], coarse, atol=1e-4)
    at, between = (continuous_kernels.axis_of(k, r, layer) for k, r in ((coarse, 1), (fine, 2)))
    assert torch.allclose(at, between[::2]) and at[-1] == 1


def test_masks_over_a_run(tmp_path):
    layer = torch.nn.ModuleDict({'backbone': torch.nn.ModuleDict(
        {'conv1': SeparableFlexConv2d(2, kernel_size=9)})})
    for epoch, width in ((10, 0.5), (2, 0.25)):
        layer['backbone']['conv1'].mask_width.data.fill_(width)
        torch.save({'state_dict': layer.state_dict()}, tmp_path / f'epoch_{epoch}.pth')
    epochs, widths, names = continuous_kernels.mask_widths(str(tmp_path))
    assert (epochs, widths.tolist(), names) == ([2, 10], [[0.25], [0.5]], ['conv1'])
    with pytest.raises(UserError, match='holds no checkpoints'):
        continuous_kernels.mask_widths(str(tmp_path / 'none'))


def test_curves_of_a_resumed_run(tmp_path):
    for start, lines in (('1', [dict(loss=3., lr=1., step=1), dict(loss=2., lr=1., step=2)]),
                         ('2', [dict(loss=1., lr=.5, step=2), {'accuracy/top1': 9., 'step': 1}])):
        folder = tmp_path / start / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n{"lo')
    found = curves.read_curves(str(tmp_path))
    assert found == {'loss': ([1, 2], [3., 1.]), 'lr': ([1, 2], [1., .5]),
                     'accuracy/top1': ([1], [9.])}
    assert curves.panels(found) == {'loss': ['loss'], 'lr': ['lr'],
                                    'accuracy/top1': ['accuracy/top1']}
    with pytest.raises(UserError, match='holds no log'):
        curves.read_curves(str(tmp_path / '1'))


def test_points_of_the_zoo(tmp_path):
    (tmp_path / 'models.json').write_text(json.dumps({'inference': {
        'CedNet-50 nchw': {'ms': [1, 30., 40]}, 'CedNet-50 nhwc': {'ms': [1, 20., 40]}}}))
    latencies = zoo_points.read_latencies(str(tmp_path / 'models.json'))
    points = {point.name: point for point in zoo_points.zoo_points(latencies)}
    point = points['cednet50']
    assert (point.family, point.top1, point.latency) == ('cednet', 78.83, 20.)
    # Written with three decimals.
    assert np.allclose((point.params, point.flops), (16.250, 2.948), atol=1e-3)
    assert points['se_cotnetd152_320'].family == 'se_cotnetd'
    assert points['pyconvresnet50_augment'].family == 'pyconvresnet +augment'
    with pytest.raises(UserError, match='no.json is not a result of bench_models.py'):
        zoo_points.read_latencies('no.json')
