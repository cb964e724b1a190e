import pytest
import torch
from mmengine.registry import DefaultScope
from tolerances import assert_close

from mmcontext.layers import SplitAttention2d, SplitAttentionConv2d
from mmcontext.registry import MODELS

pytest.importorskip('mmpretrain')


def build(name='DropoutClsHead', **options):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(
            type=f'mmcontext.{name}', num_classes=3, in_channels=400, **options))


def test_the_names_of_0_1_are_known():
    assert type(build('LinearClsHead')) is type(build())
    assert MODELS.get('mmcontext.SplitAttentionConv2d') is SplitAttention2d
    assert SplitAttentionConv2d is SplitAttention2d
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        head = MODELS.build(dict(type='LinearClsHead', num_classes=3, in_channels=4))
    assert not hasattr(head, 'dropout')  # mmpretrain's


def test_keys_are_those_of_mmpretrains_head():
    assert list(build(dropout=0.25).state_dict()) == ['fc.weight', 'fc.bias']


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    head = build(dropout=0.25)
    x = torch.ones(50, 400)
    head.eval()
    assert_close(head((x, )), head.fc(x))
    head.train()
    dropped = head.pre_logits((torch.zeros(1), x))
    assert_close(dropped.unique(), torch.tensor([0., 1 / 0.75]))
    # 6 standard deviations for 20,000 draws.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_without_dropout_it_is_mmpretrains_head():
    head = build()
    x = torch.randn(2, 400)
    assert_close(head((x, )), head.fc(x))


@pytest.mark.parametrize('dropout', [-0.1, 1.])
def test_dropout_out_of_range(dropout):
    with pytest.raises(ValueError, match=rf'dropout={dropout} must be in \[0, 1\)'):
        build(dropout=dropout)
