import pytest
import torch
from common import CONTEXT_OPERATORS
from tolerances import SAME, assert_close
from torch import nn

pytest.importorskip('mmdet')
from mmdet.models.dense_heads import RPNHead  # noqa: E402
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead  # noqa: E402
from mmdet.models.roi_heads.mask_heads import FCNMaskHead  # noqa: E402

from mmcontext.registry import MODELS  # noqa: E402

ANCHORS = dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8])
RPN = dict(type='mmcontext.ContextRPNHead', in_channels=16, feat_channels=16,
           anchor_generator=ANCHORS)
MASK = dict(type='mmcontext.ContextFCNMaskHead', in_channels=16, conv_out_channels=16,
            num_classes=3)
BOX = dict(type='mmcontext.ContextConvFCBBoxHead', in_channels=16, conv_out_channels=16,
           fc_out_channels=8, roi_feat_size=7, num_classes=3)
HEADS = {'rpn': RPN, 'mask': MASK, 'box': BOX}


def build(cfg, **kwargs):
    torch.manual_seed(0)
    return MODELS.build({**cfg, **kwargs})


def run(name, head, x):
    return head([x]) if name == 'rpn' else head(x)


def flatten(out):
    return [out] if isinstance(out, torch.Tensor) else [t for o in out for t in flatten(o)]


def operators(head):
    modules = {'ContextRPNHead': 'rpn_conv', 'ContextFCNMaskHead': 'convs',
               'ContextConvFCBBoxHead': 'shared_convs'}[type(head).__name__]
    found = getattr(head, modules)
    return list(found) if isinstance(found, (nn.ModuleList, nn.Sequential)) else [found]


@pytest.mark.parametrize('context_cfg', CONTEXT_OPERATORS, ids=str)
@pytest.mark.parametrize('name, count', [('rpn', 1), ('mask', 4), ('box', 4)])
def test_every_operator_trains(name, count, context_cfg):
    head = build(HEADS[name], context_cfg=context_cfg)
    operator = context_cfg['type'].split('.')[1]
    assert [type(m.conv).__name__ for m in operators(head)] == [operator] * count
    outs = flatten(run(name, head, torch.randn(3, 16, 7, 7)))
    sum(o.pow(2).mean() for o in outs).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize('context_cfg', CONTEXT_OPERATORS, ids=str)
@pytest.mark.parametrize('name', ['mask', 'box'])
def test_no_region_of_interest_in_training(name, context_cfg):
    """Statistics do not change, and every parameter gets a zero gradient."""
    head = build(HEADS[name], context_cfg=context_cfg, norm_cfg=dict(type='BN')).train()
    before = {key: value.clone() for key, value in head.named_buffers()
              if 'running' in key or 'num_batches' in key}
    assert before
    outs = flatten(run(name, head, torch.randn(0, 16, 7, 7)))
    assert all(len(o) == 0 for o in outs)
    sum(o.sum() for o in outs).backward()
    after = dict(head.named_buffers())
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    for module in operators(head):
        assert all(m.training for m in module.modules())
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() == 0, key


@pytest.mark.parametrize('name, parent', [
    ('rpn', RPNHead), ('mask', FCNMaskHead), ('box', ConvFCBBoxHead)])
def test_without_operator_it_is_the_head_of_mmdet(name, parent):
    ours = build(HEADS[name])
    options = {key: value for key, value in HEADS[name].items() if key != 'type'}
    if name == 'box':
        options.update(num_shared_convs=4, num_shared_fcs=1)
    theirs = parent(**options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 16, 7, 7)
    outs, expected = flatten(run(name, ours, x)), flatten(run(name, theirs, x))
    assert len(outs) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(outs, expected))
    assert ours.init_cfg == theirs.init_cfg


def test_every_mask_operator_is_followed_by_relu():
    head = build(MASK, context_cfg=CONTEXT_OPERATORS[4]).eval()
    x = torch.randn(2, 16, 6, 6)
    y = x
    for module in head.convs:
        y = module.conv(y).relu()
    expected = head.conv_logits(head.upsample(y).relu())
    assert_close(head(x), expected, SAME)


def test_rpn_initialises_its_predictors_and_leaves_the_operator():
    head = build(RPN, context_cfg=CONTEXT_OPERATORS[5])
    before = head.rpn_conv.conv.span.weight.clone()
    head.init_weights()
    assert torch.equal(head.rpn_conv.conv.span.weight, before)
    assert 0.005 < head.rpn_cls.weight.std() < 0.02  # drawn with a standard deviation of 0.01
    assert head.rpn_reg.bias.abs().max() == 0


def test_several_rpn_operators():
    head = build(RPN, context_cfg=CONTEXT_OPERATORS[0], num_convs=2, feat_channels=8)
    assert [m.conv.out_channels for m in operators(head)] == [8, 8]
    scores, _ = head([torch.randn(1, 16, 5, 4)])
    assert scores[0].shape == (1, 3, 5, 4)


def test_box_head_with_branches():
    head = build(BOX, context_cfg=CONTEXT_OPERATORS[0], num_shared_convs=1, num_shared_fcs=0,
                 num_cls_convs=2, num_reg_convs=1)
    assert [len(m) for m in (head.shared_convs, head.cls_convs, head.reg_convs)] == [1, 2, 1]
    scores, boxes = head(torch.randn(2, 16, 7, 7))
    assert scores.shape == (2, 4) and boxes.shape == (2, 12)
