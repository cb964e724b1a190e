import subprocess
import sys

import pytest
import torch
from common import CONTEXT_OPERATORS

from mmcontext.models.necks import ContextFPN
from mmcontext.registry import MODELS

CHANNELS = [8, 16, 24, 32]


def features(sizes, channels=CHANNELS, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *size, generator=generator)
            for c, size in zip(channels, sizes)]


def build(**kwargs):
    torch.manual_seed(0)
    cfg = dict(type='mmcontext.ContextFPN', in_channels=CHANNELS, out_channels=16, num_outs=5)
    neck = MODELS.build({**cfg, **kwargs})
    neck.init_weights()
    return neck


@pytest.mark.parametrize('options', [
    dict(num_outs=5),
    dict(num_outs=4, no_norm_on_lateral=True, norm_cfg=dict(type='BN')),
    dict(num_outs=6, start_level=1, add_extra_convs=True, relu_before_extra_convs=True),
    dict(num_outs=6, start_level=1, add_extra_convs='on_lateral'),
    dict(num_outs=6, add_extra_convs='on_output', norm_cfg=dict(type='BN'),
         act_cfg=dict(type='ReLU')),
    dict(num_outs=2, start_level=1, end_level=2),
    dict(num_outs=4, upsample_cfg=dict(mode='bilinear', align_corners=False)),
    dict(num_outs=4, upsample_cfg=dict(mode='nearest', scale_factor=2)),
], ids=str)
def test_without_operator_it_is_the_fpn_of_mmdet(options):
    FPN = pytest.importorskip('mmdet.models.necks').FPN
    theirs = FPN(in_channels=CHANNELS, out_channels=16, **options)
    ours = ContextFPN(in_channels=CHANNELS, out_channels=16, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    inputs = features([(16, 24), (8, 12), (4, 6), (2, 3)])
    expected, outs = theirs(inputs), ours(inputs)
    assert len(outs) == len(expected) == options['num_outs']
    assert all(torch.equal(a, b) for a, b in zip(outs, expected))


@pytest.mark.parametrize('context_cfg', CONTEXT_OPERATORS, ids=str)
def test_every_operator_gives_every_level_and_trains(context_cfg):
    neck = build(context_cfg=context_cfg, add_extra_convs='on_input', num_outs=6)
    sizes = [(13, 9), (7, 5), (4, 3), (2, 2)]
    outs = neck(features(sizes))
    assert [tuple(o.shape) for o in outs] == [
        (2, 16, *size) for size in [*sizes, (1, 1), (1, 1)]]
    sum(o.pow(2).mean() for o in outs).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    operator = context_cfg['type'].split('.')[1]
    assert [type(m.conv).__name__ for m in neck.fpn_convs] == [operator] * 4 + ['Conv2d'] * 2


@pytest.mark.parametrize('context_cfg', CONTEXT_OPERATORS, ids=str)
def test_one_pixel_maps_at_inference(context_cfg):
    neck = build(context_cfg=context_cfg).eval()
    with torch.no_grad():
        outs = neck(features([(2, 1), (1, 1), (1, 1), (1, 1)], batch=1))
    assert [tuple(o.shape[2:]) for o in outs] == [(2, 1)] + [(1, 1)] * 4
    assert all(o.isfinite().all() for o in outs)


def test_norm_and_activation_follow_the_operator():
    neck = build(context_cfg=CONTEXT_OPERATORS[0], norm_cfg=dict(type='BN'),
                 act_cfg=dict(type='ReLU'))
    level = neck.fpn_convs[0]
    x = features([(6, 5)], channels=[16])[0]
    expected = torch.relu(level.norm(level.conv(x)))
    assert torch.equal(level(x), expected)


def test_operators_are_initialised_as_convolutions_are():
    neck = build(context_cfg=dict(type='mmcontext.Involution2d'))
    weight = neck.fpn_convs[0].conv.span.weight
    bound = (6 / sum(weight.shape[:2]))**0.5
    assert 0.9 * bound < weight.abs().max() <= bound
    assert neck.fpn_convs[0].conv.span.bias.abs().max() == 0


@pytest.mark.parametrize('options, error, message', [
    (dict(in_channels=8), TypeError, 'in_channels must be a list'),
    (dict(num_outs=3), ValueError, 'num_outs must be at least the 4 levels used, got 3'),
    (dict(start_level=4), ValueError, 'start_level 4'),
    (dict(end_level=7), ValueError, 'end_level 7'),
    (dict(end_level=2, num_outs=4), ValueError, 'num_outs must be 3'),
    (dict(add_extra_convs='on_top'), ValueError, "add_extra_convs must be .*'on_top'"),
    (dict(context_cfg='CVolution2d'), TypeError, "context_cfg must be a dict with the key 'type'"),
    (dict(context_cfg=dict(kernel_size=3)), TypeError, 'context_cfg must be a dict'),
])
def test_bad_arguments(options, error, message):
    cfg = dict(in_channels=CHANNELS, out_channels=16, num_outs=5)
    with pytest.raises(error, match=message):
        ContextFPN(**{**cfg, **options})


def test_wrong_number_of_inputs():
    with pytest.raises(ValueError, match='built for 4 levels, got 3'):
        build()(features([(4, 4)] * 3))


def test_without_mmdet_and_mmseg():
    code = """
import sys
for name in ('mmdet', 'mmseg', 'mmpretrain'):
    sys.modules[name] = None
from mmengine.registry import MODELS
MODELS.build(dict(type='mmcontext.ContextFPN', in_channels=[16, 16], out_channels=16,
                  num_outs=2, context_cfg=dict(type='mmcontext.CVolution2d')))
for name in ('ContextRPNHead', 'ContextFCNMaskHead', 'ContextConvFCBBoxHead'):
    try:
        MODELS.build(dict(type=f'mmcontext.{name}', in_channels=16))
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if 'mmcontext.' in line]
    assert len(lines) == 3
    assert all("needs the package mmdet" in line and 'pip install mmdet' in line
               for line in lines)
