"""Operators in the heads of detectors, trained on 0, 1 and 2 regions."""
import pytest
import torch
from common import CONTEXT_OPERATORS
from torch import nn

pytest.importorskip('mmdet')
from mmcontext.registry import MODELS  # noqa: E402

OPERATORS = [*CONTEXT_OPERATORS, dict(type='mmcontext.SplitAttention2d')]
HEADS = {
    'mask': dict(type='mmcontext.ContextFCNMaskHead', num_convs=1),
    'box': dict(type='mmcontext.ContextConvFCBBoxHead', num_shared_convs=1, fc_out_channels=8,
                roi_feat_size=7),
}


def outputs(head, x):
    y = head(x)
    return [y] if torch.is_tensor(y) else list(y)


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN'), dict(type='SyncBN'),
                                      dict(type='GN', num_groups=32), dict(type='IN')],
                         ids=lambda cfg: cfg and cfg['type'])
@pytest.mark.parametrize('context_cfg', OPERATORS, ids=lambda cfg: cfg['type'][10:] + '-'.join(
    str(value) for value in cfg.values() if isinstance(value, int)))
@pytest.mark.parametrize('kind', HEADS)
def test_few_regions(kind, context_cfg, norm_cfg):
    inner = {} if norm_cfg is None or not context_cfg['type'].endswith(
        ('CoT2d', 'AttentionConv2d')) else dict(norm_cfg=norm_cfg)
    head = MODELS.build(dict(
        HEADS[kind], in_channels=32, conv_out_channels=32, num_classes=3, norm_cfg=norm_cfg,
        context_cfg={**context_cfg, **inner})).train()
    norms = {name: module for name, module in head.named_modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    for regions in (0, 1, 2):
        before = {name: norm.running_var.clone() for name, norm in norms.items()}
        head.zero_grad(set_to_none=True)
        result = outputs(head, torch.randn(regions, 32, 7, 7))
        assert all(y.shape[0] == regions and y.isfinite().all() for y in result)
        sum(y.square().sum() for y in result).backward()
        for name, p in head.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
        for name, norm in norms.items():
            pooled = '.attend.' in name or '.gate.' in name
            moved = not torch.equal(norm.running_var, before[name])
            assert moved == (regions > (1 if pooled else 0)), name
