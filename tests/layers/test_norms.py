"""Norms of narrow branches and of batches without statistics."""
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch.nn.utils.prune as prune
from common import COMPILES
from tolerances import DOUBLE, assert_close
from torch import nn

from mmcontext.layers import CoT2d, SplitAttention2d
from mmcontext.layers.conv_norm import run_together
from mmcontext.layers.norms import build_norm, fit_norm_cfg, normalise


def batch_norm(kind=nn.BatchNorm2d, **options):
    norm = kind(6, **options).double()
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    return norm


def by_running_statistics(norm, x):
    mean, variance, weight, bias = (
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize('channels, groups, expected', [
    (64, 32, 32), (8, 32, 8), (48, 32, 24), (7, 32, 7), (22, 4, 2), (64, 1, 1)])
def test_groups_that_do_not_divide_give_way(channels, groups, expected):
    cfg = dict(type='GN', num_groups=groups, eps=1e-3)
    assert fit_norm_cfg(cfg, channels) == dict(cfg, num_groups=expected)
    assert build_norm(cfg, channels).num_groups == expected and cfg['num_groups'] == groups
    assert isinstance(build_norm(None, channels), nn.BatchNorm2d)


@pytest.mark.parametrize('kind', [nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize('shape', [(1, 6, 1, 1), (0, 6, 4, 4)], ids=str)
def test_running_statistics_serve_and_stay(kind, shape):
    norm, x = batch_norm(kind), torch.randn(shape, dtype=torch.float64)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    y = normalise(norm, x)
    assert_close(y, by_running_statistics(norm, x), DOUBLE)
    y.sum().backward()
    assert norm.weight.grad is not None and norm.training
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_the_next_batch_may_move_them_before_the_backward():
    norm, x = batch_norm(), torch.randn(3, 6, 1, 1, dtype=torch.float64)
    (normalise(norm, x[:1]).sum() + normalise(norm, x[1:]).sum()).backward()
    assert norm.bias.grad.eq(3).all()


@pytest.mark.parametrize('shape', [(2, 6, 1, 1), (1, 6, 1, 2)], ids=str)
def test_two_values_have_statistics(shape):
    norm, x = batch_norm(), torch.randn(shape, dtype=torch.float64)
    assert_close(normalise(norm, x), F.batch_norm(
        x, None, None, norm.weight, norm.bias, training=True))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('norm', [
    nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(6, 6),
    nn.BatchNorm2d(6, track_running_stats=False)], ids=lambda norm: type(norm).__name__)
def test_norms_that_keep_no_statistics_pass_single_values_on(norm, training):
    norm = norm.double().train(training)
    nn.init.uniform_(norm.weight, 0.5, 2), nn.init.uniform_(norm.bias)
    x = torch.randn(1, 6, 1, 1, dtype=torch.float64)
    expected = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    # Norms divide by sqrt(1 + eps).
    assert_close(normalise(norm, x), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert_close(run_together(x.float(), norm=norm.float()), expected.float(), rtol=1e-4,
                     atol=1e-4)


def test_a_touched_norm_is_called():
    norm, x, seen = batch_norm(), torch.randn(1, 6, 1, 1, dtype=torch.float64), []
    norm.register_forward_hook(lambda module, args, output: seen.append(output))
    prune.l1_unstructured(norm, 'weight', amount=3)
    y = normalise(norm, x)
    assert seen[0] is y and 'forward' not in norm.__dict__
    norm.weight = norm.weight_orig * norm.weight_mask
    assert_close(y, by_running_statistics(norm, x))


class _Gathered(nn.SyncBatchNorm):
    """torch's result for one value in all processes: its variance is 0 / 0."""

    def forward(self, x):
        self.running_mean += 1
        self.running_var.fill_(float('nan'))
        self.num_batches_tracked += 1
        return x


def test_one_value_in_all_processes_leaves_the_statistics(monkeypatch):
    """The arithmetic of several GPUs is simulated here; it has not been run on them."""
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_world_size', lambda group=None: 2)
    norm = batch_norm(_Gathered)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for batch in (0, 1):
        x = torch.randn(batch, 6, 1, 1, dtype=torch.float64)
        assert normalise(norm, x) is x
        assert all(torch.equal(value, before[name])
                   for name, value in norm.state_dict().items())
    normalise(norm, torch.randn(2, 6, 1, 1, dtype=torch.float64))
    assert norm.num_batches_tracked == before['num_batches_tracked'] + 1


@COMPILES
@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='IN', affine=True),
                                      dict(type='GN', num_groups=32)], ids=lambda c: c['type'])
@pytest.mark.parametrize('layer', [CoT2d, SplitAttention2d])
def test_one_image_compiles(layer, norm_cfg):
    torch._dynamo.reset()
    module, x = layer(32, norm_cfg=norm_cfg).double(), torch.randn(1, 32, 5, 5).double()
    expected = module(x)
    module.zero_grad()
    y = torch.compile(module, fullgraph=True, backend='aot_eager')(x)
    assert_close(y, expected)
    y.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
