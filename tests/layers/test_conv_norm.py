"""Norm, residual and activation in one pass: the numbers of the modules, and when not to."""
import itertools

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model.utils import revert_sync_batchnorm
from torch import nn

from mmcontext.layers import conv_norm
from mmcontext.layers.conv_norm import FusedConvModule, FusedSequential, channel_means, fused
from mmcontext.models.backbones import CoResNet, CoTNet, RedNet
from mmcontext.ops import native_library
from mmcontext.ops.native_library import instruction_sets

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}
needs_library = pytest.mark.skipif(not instruction_sets(), reason='installed without a compiler')


def _norm(kind, channels):
    norm = {'batch': lambda: nn.BatchNorm2d(channels),
            'batch-plain': lambda: nn.BatchNorm2d(channels, affine=False),
            'reverted': lambda: revert_sync_batchnorm(nn.SyncBatchNorm(channels)),
            'group': lambda: nn.GroupNorm(channels // 3, channels),
            'group-plain': lambda: nn.GroupNorm(1, channels, affine=False)}[kind]()
    for tensor in itertools.chain(norm.parameters(), norm.buffers()):
        if tensor.is_floating_point():
            tensor.detach().uniform_(0.5, 2)
    return norm.eval()


def _operators(call):
    """Names of the native operators that ``call`` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages() if 'mmcontext_native' in event.key}


@needs_library
@pytest.mark.parametrize('act', [None, nn.ReLU(), nn.SiLU()], ids=['none', 'relu', 'silu'])
@pytest.mark.parametrize('kind', ['batch', 'batch-plain', 'reverted', 'group', 'group-plain'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('isa', instruction_sets())
def test_equals_the_modules(isa, layout, kind, act, monkeypatch):
    """Float32 of the kernels against float64 of torch: 2e-6 of the largest value."""
    monkeypatch.setenv('MMCONTEXT_CPU_ISA', isa)
    torch.manual_seed(0)
    # Rows that fill vectors of every width, some and none; rows of one; several chunks of pixels.
    for batch, channels, height, width in ((2, 48, 5, 7), (1, 24, 9, 31), (3, 21, 2, 2),
                                           (2, 12, 1, 1)):
        norm = _norm(kind, channels)
        x, residual = (20 * torch.randn(batch, channels, height, width).contiguous(
            memory_format=LAYOUTS[layout]) + 5 for _ in range(2))
        for other in (None, residual) if 'group' not in kind else (None, ):
            expected = norm.double()(x.double())
            expected = expected if other is None else expected + other
            expected = expected if act is None else act(expected)
            norm.float()
            with torch.no_grad():
                before = x.clone()
                operators = _operators(lambda: fused(x, norm, *filter(None, [act])))
                actual = fused(x, norm, act or nn.Identity(), residual=other)
                assert torch.equal(x, before)
                in_place = fused(x.clone(memory_format=torch.preserve_format), norm,
                                 act or nn.Identity(), residual=other, overwrite=True)
            family = 'group' if 'group' in kind else 'batch'
            assert operators == {f'mmcontext_native::{family}_norm_act'}
            assert actual.stride() == x.stride() and torch.equal(actual, in_place)
            error = (actual - expected).abs().max() / expected.abs().max()
            assert error < 2e-6, (channels, height, width)


@needs_library
@pytest.mark.parametrize('layout', LAYOUTS)
def test_nan_stays_and_extremes_are_tame(layout):
    norm = nn.BatchNorm2d(16, affine=False, eps=0.).eval()
    x = torch.tensor([float('nan'), 1e30, -1e30, 100., -100., 0.]).repeat(1, 16, 3, 1)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    with torch.no_grad():
        for act in (nn.ReLU(), nn.SiLU()):
            torch.testing.assert_close(fused(x, norm, act), act(x), equal_nan=True, rtol=1e-6,
                                       atol=1e-35)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shape', [(2, 24, 9, 31), (1, 21, 1, 1), (3, 5, 1, 70)], ids=str)
def test_channel_means(shape, layout):
    maps = [torch.randn(shape).contiguous(memory_format=LAYOUTS[layout]) + 3 for _ in range(2)]
    maps.append(torch.randn(shape))
    expected = sum(x.double().mean((2, 3), keepdim=True) for x in maps)
    with torch.no_grad():
        torch.testing.assert_close(channel_means(*maps).double(), expected, rtol=1e-6, atol=1e-6)
        if instruction_sets():
            assert _operators(lambda: channel_means(*maps)) == {'mmcontext_native::channel_means'}
    torch.testing.assert_close(channel_means(*maps).double(), expected, rtol=1e-5, atol=1e-5)


@needs_library
def test_group_norm_far_from_zero():
    """A mean a thousand times the deviation, where a one-pass variance has no digit left."""
    norm = nn.GroupNorm(4, 32)
    for layout in LAYOUTS.values():
        x = (torch.randn(1, 32, 20, 20) + 1000).contiguous(memory_format=layout)
        with torch.no_grad():
            error = fused(x, norm) - norm.double()(x.double())
        norm.float()
        assert error.abs().max() < 1e-3


@pytest.mark.parametrize('stride', [1, (2, 1), 2])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (11, 30)], ids=str)
def test_pointwise_convolution(size, layout, stride):
    for channels in ((32, 8), (8, 32), (1, 1)):
        conv = nn.Conv2d(*channels, 1, stride=stride).to(memory_format=LAYOUTS[layout])
        x = torch.randn(3, channels[0], *size).contiguous(memory_format=LAYOUTS[layout])
        with torch.no_grad():
            expected, actual = conv(x), fused(x, conv)
        assert actual.stride() == expected.stride() or 1 in actual.shape
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('network', [lambda: CoTNet(50, base_channels=16),
                                     lambda: RedNet(26, base_channels=32)], ids=['cot', 'red'])
def test_inference_of_a_network(network, layout, turned):
    """With and without gradients: the same features, though not by the same kernels."""
    torch.manual_seed(0)
    model = network()
    model.channels_last_from = 0 if turned else float('inf')
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    model.eval()
    x = torch.randn(2, 3, 64, 70).contiguous(memory_format=LAYOUTS[layout])
    model.to(memory_format=LAYOUTS[layout])
    expected, = model(x)
    with torch.inference_mode():
        actual, = model(x)
        if instruction_sets():
            assert 'mmcontext_native::batch_norm_act' in _operators(lambda: model(x))
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def _block():
    return FusedSequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()


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
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('network', [CoTNet, RedNet, CoResNet])
def test_norms_folded_into_convolutions(network):
    torch.manual_seed(0)
    model = network(50, base_channels=32)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, = model(x)
        folded, = fuse_conv_bn(model)(x)
    torch.testing.assert_close(folded, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@needs_library
def test_strides_of_single_rows_do_not_matter():
    """A slice of a larger tensor is contiguous whatever the stride of an axis of one."""
    norm, x = nn.BatchNorm2d(4).eval(), torch.randn(1, 4, 3, 2)
    with torch.no_grad():
        expected = norm(x) + x
        for strides in ((999, 6, 2, 1), (1, 1, 8, 4)):
            odd = torch.empty_strided((1, 4, 3, 2), strides).copy_(x)
            for residual in (odd, x, x.contiguous(memory_format=torch.channels_last)):
                torch.testing.assert_close(fused(odd, norm, nn.Identity(), residual=residual),
                                           expected)


@pytest.mark.parametrize('hooked', [0, 1, 2])
def test_hooks_see_what_they_would_see(hooked):
    block, x, seen = _block(), torch.randn(1, 6, 5, 5), []
    block[hooked].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        y = block(x)
        expected = nn.Sequential(*block[:hooked + 1])(x)
        torch.testing.assert_close(y, nn.Sequential(*block)(x))
    torch.testing.assert_close(seen[0], expected, rtol=1e-6, atol=1e-6)


def test_global_hooks_run():
    block, seen = _block(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module)))
    with torch.no_grad():
        block(torch.randn(1, 6, 5, 5))
    handle.remove()
    assert seen == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, FusedSequential]


def test_statistics_are_gathered_without_gradients():
    block = _block().train()
    with torch.no_grad():
        block(torch.randn(4, 6, 5, 5))
    assert block[1].num_batches_tracked == 1 and block[1].running_mean.abs().sum() > 0


def test_transforms_and_low_precision_go_by_the_modules():
    block, x = _block(), torch.randn(3, 6, 5, 5)
    with torch.no_grad():
        expected = block(x)
        each = torch.func.vmap(lambda sample: block(sample[None])[0])(x)
        _, tangent = torch.func.jvp(block, (x, ), (x, ))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            low = block(x)
        twice = block.double()(x.double())
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(twice.float(), expected)
    assert low.dtype == torch.bfloat16
    block.float()
    plain = nn.Sequential(*block)
    torch.testing.assert_close(tangent, torch.func.jvp(plain, (x, ), (x, ))[1])


def test_without_the_library(monkeypatch):
    block, x = _block(), torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        expected = block(x)
        monkeypatch.setattr(conv_norm.native_library, 'UNAVAILABLE', 'not compiled')
        assert not _operators(lambda: block(x))
        torch.testing.assert_close(block(x), expected)
    assert native_library.UNAVAILABLE == 'not compiled'


def test_conv_module_with_parts_left_out():
    module = FusedConvModule(6, 8, 3, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')).eval()
    x = torch.randn(2, 6, 5, 5)
    for options in ({}, {'activate': False}, {'norm': False}, {'norm': False, 'activate': False}):
        expected = module(x, **options)
        with torch.no_grad():
            torch.testing.assert_close(module(x, **options), expected)


@needs_library
def test_empty_batch_and_wrong_width():
    norm = nn.BatchNorm2d(8).eval()
    with torch.no_grad():
        assert fused(torch.zeros(0, 8, 3, 3), norm).shape == (0, 8, 3, 3)
        with pytest.raises(RuntimeError, match='C'):
            fused(torch.zeros(1, 7, 3, 3), norm)
