import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from tolerances import DOUBLE_LAYERS, assert_close

pytest.importorskip('mmseg')
from mmseg.structures import SegDataSample  # noqa: E402

from mmcontext.registry import MODELS  # noqa: E402

OPERATORS = [
    dict(type='mmcontext.CoConv2d'),
    dict(type='mmcontext.PyConv2d', levels=2),
    dict(type='mmcontext.CoT2d'),
    dict(type='mmcontext.Involution2d', kernel_size=3),
    dict(type='mmcontext.CVolution2d'),
]


def build(context_cfg=OPERATORS[0], **kwargs):
    cfg = dict(
        type='mmcontext.ContextFCNHead',
        in_channels=24,
        channels=32,
        num_classes=4,
        norm_cfg=dict(type='BN'),
        context_cfg=context_cfg)
    torch.manual_seed(0)
    return MODELS.build({**cfg, **kwargs})


@pytest.mark.parametrize('context_cfg', OPERATORS, ids=lambda c: c['type'])
@pytest.mark.parametrize('concat_input', [True, False])
def test_every_operator_trains(context_cfg, concat_input):
    head = build(context_cfg, concat_input=concat_input).train()
    out = head([torch.randn(2, 24, 9, 7)])
    assert out.shape == (2, 4, 9, 7)
    out.pow(2).mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    operator = context_cfg['type'].split('.')[1]
    found = [m for m in head.modules() if type(m).__name__ == operator]
    assert len(found) == (3 if concat_input else 2)


def test_forward_is_the_definition():
    head = build(
        dict(type='Conv2d', kernel_size=3, padding=1, bias=False), norm_cfg=None, num_convs=1,
        dropout_ratio=0.).double()
    x = torch.randn(1, 24, 6, 5, dtype=torch.float64)
    first, last = head.convs[0], head.conv_cat

    def layer(x, modules):
        x = F.relu(F.conv2d(x, modules[0].conv.weight, modules[0].conv.bias))
        return F.relu(F.conv2d(x, modules[1].conv.weight, padding=1))
    feats = layer(torch.cat([x, layer(x, first)], 1), last)
    expected = F.conv2d(feats, head.conv_seg.weight, head.conv_seg.bias)
    assert_close(head([x]), expected, DOUBLE_LAYERS)


def test_no_convs_classifies_the_input():
    head = build(num_convs=0, channels=24, concat_input=False, dropout_ratio=0.)
    x = torch.randn(1, 24, 4, 4)
    assert torch.equal(head([x]), head.conv_seg(x))


@pytest.mark.parametrize('kwargs, message', [
    (dict(num_convs=-1), 'num_convs=-1'),
    (dict(num_convs=0), 'channels=32 must equal in_channels=24'),
    (dict(input_transform='multiple_select', in_channels=[24], in_index=[0]), 'multiple_select'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_label_out_of_range():
    head = build()
    wrong = SegDataSample(metainfo=dict(img_path='wrong.png'))
    wrong.gt_sem_seg = PixelData(data=torch.full((1, 8, 8), 4))
    with pytest.raises(ValueError, match=r"'wrong.png' holds \[4\], expected .* 0 to 3"):
        head.loss([torch.randn(1, 24, 4, 4)], [wrong], {})
