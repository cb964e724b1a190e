"""Modules run together: their results, what one call includes, and when each is called."""
import itertools

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model.utils import revert_sync_batchnorm
from tolerances import SINGLE_LAYERS, assert_close
from torch import nn

from mmcontext.layers import conv_norm
from mmcontext.layers.conv_norm import ConvNormAct, FusedConvModule, run_together
from mmcontext.models.backbones import CoResNet, CoTNet, RedNet
from mmcontext.ops import native_library
from mmcontext.ops.conv_norm_act import METHOD_VARIABLE
from mmcontext.ops.native_library import instruction_sets

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}
COMPILED = bool(instruction_sets())
needs_library = pytest.mark.skipif(not COMPILED, reason='installed without a compiler')


@pytest.fixture
def passes(monkeypatch):
    """What each call of the operator included: convolution, norm, activation, residual."""
    taken, original = [], conv_norm.run_compiled

    def spy(x, conv=None, norm=None, activation='none', residual=None, method='auto'):
        given = dict(c=conv, n=norm, a=activation != 'none' or None, r=residual)
        taken.append(''.join(letter for letter, part in given.items() if part is not None))
        return original(x, conv, norm, activation, residual, method)

    monkeypatch.setattr(conv_norm, 'run_compiled', spy)
    return taken


def _by_pixel(x):
    return x.contiguous(memory_format=torch.channels_last)


def _norm(channels, kind=nn.BatchNorm2d, **options):
    norm = kind(channels, **options).eval()
    for tensor in itertools.chain(norm.parameters(), norm.buffers()):
        if tensor.is_floating_point():
            tensor.detach().uniform_(0.5, 2)
    return norm


def _conv(outputs=32, **options):
    return nn.Conv2d(16, outputs, 3, **{'padding': 1, **options})


def _block(**parts):
    return ConvNormAct(**{**dict(conv=_conv(), norm=_norm(32), act=nn.ReLU()), **parts})


class _Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@needs_library
@pytest.mark.parametrize('parts, residual, expected', [
    (dict(), False, ['cna']),
    (dict(), True, ['cnar']),
    (dict(act=nn.GELU()), True, ['cn']),
    (dict(act=nn.SiLU()), True, ['cnar']),
    (dict(act=None), True, ['cnr']),
    (dict(norm=None), True, ['car']),
    (dict(norm=nn.Identity()), True, ['car']),
    (dict(conv=nn.Conv2d(16, 32, 3, bias=False)), False, ['cna']),
    (dict(norm=nn.GroupNorm(4, 32)), True, ['cnar']),
    (dict(norm=nn.GroupNorm(32, 32)), False, ['c']),
    (dict(norm=revert_sync_batchnorm(nn.SyncBatchNorm(32))), True, ['c']),  # in training mode
    (dict(norm=revert_sync_batchnorm(_norm(32, nn.SyncBatchNorm)).eval()), True, ['cnar']),
    (dict(norm=_norm(32, affine=False)), True, ['cnar']),
    (dict(norm=_norm(32, track_running_stats=False)), True, ['c']),
    (dict(norm=_norm(32, _Doubled)), False, ['c']),
    (dict(norm=nn.InstanceNorm2d(32)), True, ['c']),
    (dict(conv=_conv(padding_mode='reflect')), True, ['nar']),
    (dict(conv=_conv(padding='same')), True, ['nar']),
    (dict(conv=nn.Sequential(_conv(), nn.Dropout(0.))), True, ['nar']),
    (dict(conv=None, norm=_norm(16)), False, ['na']),
    (dict(conv=None, norm=None), True, []),
    (dict(pool=nn.MaxPool2d(3, 1, 1)), True, ['cnar']),
], ids=str)
def test_what_one_call_takes(parts, residual, expected, passes):
    torch.manual_seed(0)
    block, x = _block(**parts), _by_pixel(torch.randn(2, 16, 9, 8))
    act = block.part('act') or nn.Identity()
    reference = block[:len(block) - (block.part('act') is not None)](x)
    other = torch.randn_like(reference) if residual else None
    reference = act(reference if other is None else reference + other)
    with torch.no_grad():
        actual = block(x, other)
    assert passes == expected
    assert_close(actual, reference, SINGLE_LAYERS)
    assert_close(block(x, other), reference, SINGLE_LAYERS)


def test_modules_have_the_names_of_a_sequential():
    block = _block(pool=nn.MaxPool2d(2))
    assert list(block.state_dict())[0] == '1.weight' and block[1] is block.part('conv')
    assert type(block[1:]) is nn.Sequential and len(block[1:]) == 3
    block[2] = other = nn.GroupNorm(1, 32)
    assert block.part('norm') is other


@needs_library
def test_a_residual_of_another_layout_or_dtype_is_added_all_the_same(passes):
    block, x, other = _block(), _by_pixel(torch.randn(2, 16, 9, 8)), torch.randn(2, 32, 9, 8)
    with torch.no_grad():
        for residual in (other, other[:, :, :1, :1], other.double()):
            expected = (block[1](block[0](x)) + residual).relu()
            assert_close(block(x, residual), expected, SINGLE_LAYERS)
    assert passes == ['cnar'] * 3


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('place, expected', [
    (0, ['na', 'nar']), (1, ['c', 'c']), (2, ['cn', 'cn'])])
def test_hooked_modules_run_themselves(place, expected, gradients, passes):
    """And the tensors kept by a hook do not change."""
    block, seen = _block(act=nn.ReLU(inplace=True)), []
    x = _by_pixel(torch.randn(2, 16, 9, 8))
    reference = nn.Sequential(*(*list(block)[:2], nn.ReLU()))(x).detach()
    block[place].register_forward_hook(lambda _, __, out: seen.append((out, out.clone())))
    with torch.set_grad_enabled(gradients):
        for residual in (None, torch.zeros_like(reference)):
            assert_close(block(x, residual), reference, SINGLE_LAYERS)
    assert len(seen) == 2 and all(torch.equal(now, then) for now, then in seen)
    assert passes == (expected if COMPILED and not gradients else [])


def test_global_hooks_run():
    block, seen = _block(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module)))
    with torch.no_grad():
        block(torch.randn(1, 16, 5, 5))
    handle.remove()
    assert seen == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, ConvNormAct]


@needs_library
def test_changed_weights_count(passes):
    """Nothing is cached between calls, however the weights are changed."""
    block, x = _block(act=None), _by_pixel(torch.randn(1, 16, 6, 6))
    with torch.no_grad():
        block(x)
        block[0].weight.data.mul_(-2)
        block[1].running_mean.data.add_(1)
        assert_close(block(x), block[1](block[0](x)), SINGLE_LAYERS)
    assert passes == ['cn', 'cn']


def test_a_module_may_change_the_dtype():
    block = _block(conv=nn.Sequential(_conv().double()), norm=_norm(32).double())
    block[0].register_forward_pre_hook(lambda _, args: (args[0].double(), ))
    with torch.no_grad():
        assert block(torch.randn(1, 16, 5, 5)).dtype is torch.float64


def test_statistics_are_gathered_without_gradients():
    block = _block(norm=nn.BatchNorm2d(32)).train()
    with torch.no_grad():
        block(torch.randn(4, 16, 5, 5))
    assert block[1].num_batches_tracked == 1 and block[1].running_mean.abs().sum() > 0


def test_switched_off_and_without_the_library(monkeypatch, passes):
    block, x = _block(), torch.randn(2, 16, 5, 5)
    with torch.no_grad():
        expected = block(x)
        monkeypatch.setenv(METHOD_VARIABLE, 'torch')
        assert_close(block(x), expected)
        monkeypatch.delenv(METHOD_VARIABLE)
        monkeypatch.setattr(native_library, 'UNAVAILABLE', 'not compiled')
        assert_close(block(x), expected)
    assert len(passes) == COMPILED


def test_conv_module_with_parts_left_out():
    module = FusedConvModule(6, 8, 3, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')).eval()
    x = torch.randn(2, 6, 5, 5)
    for options in ({}, {'activate': False}, {'norm': False}, {'norm': False, 'activate': False}):
        expected = module(x, **options)
        with torch.no_grad():
            assert_close(module(x, **options), expected)


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='IN'),
                                      dict(type='GN', num_groups=4), dict(type='SyncBN')],
                         ids=lambda cfg: cfg['type'])
@pytest.mark.parametrize('act', ['ReLU', 'GELU'])
def test_residual_is_added_whatever_the_norm(norm_cfg, act):
    block = CoResNet(50, base_channels=16, norm_cfg=norm_cfg, act_cfg=dict(type=act)).layer1[0]
    block.eval()
    x = torch.randn(2, 16, 12, 12)
    if norm_cfg['type'] == 'SyncBN':
        block = revert_sync_batchnorm(block)
    expected = block(x)
    with torch.no_grad():
        assert_close(block(x), expected, rtol=1e-4, atol=1e-4)  # float32, several layers


def _settled(model):
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    return model


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('network', [lambda: CoTNet(50, base_channels=16),
                                     lambda: RedNet(26, base_channels=32)], ids=['cot', 'red'])
def test_inference_of_a_network(network, layout, turned, passes):
    """The same features with and without gradients, though with different kernels."""
    torch.manual_seed(0)
    model = _settled(network())
    model.channels_last_from = 0 if turned else float('inf')
    x = torch.randn(2, 3, 64, 70).contiguous(memory_format=LAYOUTS[layout])
    model.to(memory_format=LAYOUTS[layout])
    expected, = model(x)
    assert not passes
    with torch.inference_mode():
        actual, = model(x)
    if COMPILED:
        assert passes.count('cnar') == sum(model.arch_settings[model.depth])
    assert actual.stride() == expected.stride()
    # float32, a whole network.
    assert_close(actual, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize('network', [CoTNet, RedNet, CoResNet])
def test_norms_folded_into_convolutions(network):
    torch.manual_seed(0)
    model, x = _settled(network(50, base_channels=32)), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, = model(x)
        folded, = fuse_conv_bn(model)(x)
    # float32, a whole network whose weights are rounded once more.
    assert_close(folded, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@needs_library
def test_empty_batch_and_wrong_width():
    norm = nn.BatchNorm2d(8).eval()
    with torch.no_grad():
        assert run_together(torch.zeros(0, 8, 3, 3), norm=norm).shape == (0, 8, 3, 3)
        with pytest.raises(ValueError, match=r'mean must be float32 \[7\]'):
            run_together(torch.zeros(1, 7, 3, 3), norm=norm)
