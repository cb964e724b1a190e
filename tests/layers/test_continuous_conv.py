import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from common import COMPILES, since_torch
from continuous_layers import FAMILIES, KERNEL, SIZES, build, fresh_output, sample
from mmcv.cnn import ConvModule
from mmengine.registry import init_default_scope
from tolerances import DOUBLE, DOUBLE_LAYERS, assert_close

from mmcontext import layers
from mmcontext.layers import freeze_kernels, set_resolution
from mmcontext.layers.ckconv import CKConvNd
from mmcontext.registry import MODELS

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
NETS = ['MAGNet', 'GaborNet', 'FourierNet', 'RandomFourierNet', 'SIREN', 'KernelMLP',
        'RandomFeatureNet']


@pytest.mark.parametrize('dim', [1, 2, 3])
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('causal', [False, True])
def test_forward_is_a_convolution_with_the_sampled_kernel(family, dim, causal):
    layer = build(family, dim, 4, 6, 5, causal=causal)
    if 'Flex' in family:
        nn.init.constant_(layer.mask_width, 3.)  # nothing cropped
    nn.init.normal_(layer.bias)
    x = sample(dim)
    y = layer(x)
    assert y.shape == (2, 6, *SIZES[dim])
    pads = [4, 0] * dim if causal else [2, 2] * dim
    kernel = layer.sample_kernel()
    assert kernel.shape[2:] == (5, ) * dim
    expected = CONV[dim](F.pad(x, pads), kernel, layer.bias,
                         groups=4 if layer.separable else 1)
    if layer.separable:
        expected = layer.channel_mixer(expected)
    assert_close(y, expected, DOUBLE_LAYERS)


@pytest.mark.parametrize('dim', [1, 2, 3])
@pytest.mark.parametrize('family', FAMILIES)
def test_every_parameter_gets_a_gradient(family, dim):
    layer = build(family, dim, 4, 6, 5)
    layer(sample(dim)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize('family', FAMILIES)
def test_causal_outputs_see_no_later_input(family):
    layer = build(family, 1, 4, 4, 'same', causal=True).eval()
    x = sample(1).requires_grad_()
    (gradient, ) = torch.autograd.grad(layer(x)[:, :, 5].sum(), x)
    assert gradient[:, :, 6:].abs().max() == 0 and gradient[:, :, :6].abs().max() > 0


@pytest.mark.parametrize('method', ['fft', 'direct'])
@pytest.mark.parametrize('stride, dilation', [(2, 1), (1, 2), (3, 2)])
def test_stride_and_dilation(method, stride, dilation):
    layer = build('SeparableFlexConv', 2, 4, 6, 5, stride=stride, dilation=dilation,
                  method=method, mask_cfg=dict(init=3.))
    x = sample(2)
    expected = layer.channel_mixer(F.conv2d(
        x, layer.sample_kernel(), layer.bias, stride, 2 * dilation, dilation, 4))
    assert_close(layer(x), expected, DOUBLE_LAYERS)


def test_explicit_padding_and_groups():
    layer = build('CKConv', 2, 4, 6, (5, 3), padding=(0, 4), groups=2)
    x = sample(2)
    expected = F.conv2d(x, layer.sample_kernel(), layer.bias, padding=(0, 4), groups=2)
    assert_close(layer(x), expected, DOUBLE_LAYERS)


@pytest.mark.parametrize('causal, padding', [(True, None), (False, None), (False, 3), (False, 0)])
def test_cropped_taps_are_the_ones_under_the_threshold(causal, padding):
    """A cropped kernel acts like the full one with its outer taps set to zero."""
    layer = build('FlexConv', 1, 4, 4, 15, causal=causal, padding=padding,
                  mask_cfg=dict(init=0.2))
    x = sample(1).repeat(1, 1, 2)
    y = layer(x)
    cropped = layer.sample_kernel().shape[-1]
    layer.crop = False
    whole = layer.sample_kernel().detach()
    kept = slice(15 - cropped, 15) if causal else slice((15 - cropped) // 2, (15 + cropped) // 2)
    zeroed = torch.zeros_like(whole)
    zeroed[..., kept] = whole[..., kept]
    pads = (14, 0) if causal else (7, 7) if padding is None else (padding, padding)
    assert cropped < 15
    assert_close(y, F.conv1d(F.pad(x, pads), zeroed, layer.bias), DOUBLE_LAYERS)
    # The mask is at its threshold where the kernel ends, up to one tap.
    edge = (cropped - 1) / 7 if causal else (cropped - 1) / 14
    assert math.exp(-0.5 * ((edge + 2 / 14) / 0.2)**2) < 0.1
    assert math.exp(-0.5 * ((edge - 2 / 14) / 0.2)**2) > 0.1


def test_kernel_grows_with_sigma():
    layer = build('SeparableFlexConv', 2, 4, 4, 33, mask_cfg=dict(init=0.075))
    with torch.no_grad():
        sizes = []
        for sigma in (1e-9, 0.02, 0.075, 0.3, 5.):
            layer.mask_width.copy_(torch.tensor([sigma, 0.075]))
            layer(sample(2))
            sizes.append(tuple(layer.sample_kernel().shape[2:]))
    assert sizes == [(1, 5), (1, 5), (5, 5), (21, 5), (33, 5)]


def test_same_size_is_taken_from_the_first_input_and_kept():
    layer = build('SeparableCKConv', 1, 4, 4, causal=True)
    layer(sample(1))
    assert layer.train_length.tolist() == [12]
    assert layer(sample(1).repeat(1, 1, 3)).shape[-1] == 36
    assert layer.sample_kernel().shape[-1] == 12
    fresh = build('SeparableCKConv', 1, 4, 4, causal=True)
    fresh.load_state_dict(layer.state_dict())
    x = sample(1).repeat(1, 1, 2)
    assert_close(fresh(x), layer(x))


def test_centred_same_size_is_odd():
    layer = build('SeparableCKConv', 2, 4, 4)
    layer(torch.randn(1, 4, 8, 9, dtype=torch.float64))
    assert layer.train_length.tolist() == [9, 9]


@pytest.mark.parametrize('family', FAMILIES)
def test_output_layer_is_rescaled_once(family):
    layer = build(family, 2, 4, 6, 5)
    before = layer.kernel_net.output_linear.weight.detach().clone()
    layer(sample(2))
    taps = layer.sample_kernel().shape[2:].numel()
    fan_in = taps if layer.separable else taps * 4
    after = layer.kernel_net.output_linear.weight.detach().clone()
    assert_close(after, before / math.sqrt(fan_in))
    layer(sample(2))
    copied = build(family, 2, 4, 6, 5)
    copied.load_state_dict(layer.state_dict())
    copied(sample(2))
    for other in (layer, copied):
        assert torch.equal(other.kernel_net.output_linear.weight, after)


@pytest.mark.parametrize('dim', [1, 2, 3])
@pytest.mark.parametrize('name', NETS)
def test_kernel_nets(name, dim):
    net = MODELS.build(dict(type=name, dim=dim, out_channels=3, hidden_channels=8, num_layers=3,
                            omega_0=2., _scope_='mmcontext'))
    values = net(torch.rand(50, dim) * 2 - 1)
    assert values.shape == (50, 3) and values.isfinite().all() and values.std() > 1e-4
    values.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize('name', NETS)
def test_kernel_nets_in_a_layer(name):
    layer = build('SeparableFlexConv', 1, 4, 4, 9, kernel_cfg=dict(KERNEL, type=name))
    assert layer(sample(1)).isfinite().all()


def test_magnet_is_the_written_formula():
    net = layers.MAGNet(2, 3, hidden_channels=5, num_layers=2, omega_0=1.).double()
    x = torch.rand(7, 2, dtype=torch.float64) * 2 - 1

    def gabor(f):
        window = sum((f.gamma[:, d] * (x[:, d:d + 1] - f.mu[:, d]))**2 for d in range(2))
        return torch.exp(-window / 2) * torch.sin(x @ f.linear.weight.T + f.linear.bias)

    z = gabor(net.filters[0])
    for i in (1, 2):
        z = gabor(net.filters[i]) * net.linears[i - 1](z)
    expected = z @ net.output_linear.weight.T + net.output_linear.bias
    assert_close(net(x), expected, DOUBLE)
    # Centres start inside the box, at its most recent side if causal.
    causal = layers.MAGNet(1, 3, init_box=0.2, causal=True)
    assert all(f.mu.min() >= 0.8 and f.mu.max() <= 1 for f in causal.filters)


# The kernel is a function, not a table.


def band_limited(size, periods, upsampling):
    """A sum of low frequencies sampled ``upsampling`` times as densely, [1, 2, *size]."""
    generator = torch.Generator().manual_seed(1)
    axes = [torch.arange(n * upsampling, dtype=torch.float64) / (n * upsampling) for n in size]
    grid = torch.meshgrid(*axes, indexing='ij')
    x = 0
    for k in range(1, periods + 1):
        a = torch.randn(2, len(size), 2, generator=generator, dtype=torch.float64)
        waves = sum(a[:, d, 0].view(2, *(1, ) * len(size)) * torch.sin(2 * math.pi * k * g)
                    + a[:, d, 1].view(2, *(1, ) * len(size)) * torch.cos(2 * math.pi * k * g)
                    for d, g in enumerate(grid))
        x = x + waves / k
    return x[None]


@pytest.mark.parametrize('dim, causal', [(1, True), (1, False), (2, False), (3, False)])
def test_finer_grid_gives_the_same_output(dim, causal):
    """With data and kernel at twice the resolution, outputs agree to 2 % for band-limited input.

    The coarse kernel is a Riemann sum of the same integral; the tolerance is its remaining error
    with the mask cut off at 1e-6. A causal kernel ends at its largest value, with an error of half
    a tap, so it gets more taps.
    """
    taps, size = (257, 512) if causal else (33, 64) if dim < 3 else (17, 24)
    layer = build('FlexConv', dim, 2, 3, taps, causal=causal, bias=False,
                  kernel_cfg=dict(KERNEL, omega_0=0.2), method='fft',
                  mask_cfg=dict(init=0.18 if dim < 3 else 0.22, threshold=1e-6)).eval()
    x = band_limited((size, ) * dim, 3, 1)
    fine_x = band_limited((size, ) * dim, 3, 2)
    with torch.no_grad():
        coarse = layer(x)
        set_resolution(layer, 2.)
        fine = layer(fine_x)[(..., *(slice(None, None, 2), ) * dim)]
    # At the borders the edge of the zero padding is shifted by half a coarse pixel.
    inner = (..., *(slice(taps, None) if causal else slice(taps // 2, -(taps // 2)), ) * dim)
    difference = (fine - coarse)[inner].norm() / coarse[inner].norm()
    assert 0 < difference < 0.02
    # With a kernel that is not rescaled the result would be wrong by a factor of 2^dim.
    assert (fine * 2**dim - coarse)[inner].norm() / coarse[inner].norm() > 0.9


def test_resolution_one_and_back():
    layer = build('SeparableFlexConv', 2, 4, 4, 9).eval()
    x = sample(2)
    with torch.no_grad():
        before = layer(x)
        set_resolution(layer, 0.5)
        assert layer(x).shape == before.shape
        assert not torch.equal(layer(x), before)
        set_resolution(layer, 1)
        assert torch.equal(layer(x), before)



def test_as_conv_cfg_under_a_foreign_scope():
    init_default_scope('mmengine')
    conv_cfg = dict(type='mmcontext.SeparableFlexConv2d', kernel_size_override=9,
                    kernel_cfg=KERNEL)
    module = ConvModule(4, 6, 3, stride=2, padding=1, conv_cfg=conv_cfg, norm_cfg=dict(type='BN'))
    assert module(torch.randn(2, 4, 12, 10)).shape == (2, 6, 6, 5)
    assert module.conv.kernel_size == (9, 9) and module.conv.bias is None


def test_as_dcn_of_a_stock_resnet():
    backbones = pytest.importorskip('mmseg.models.backbones')
    dcn = dict(type='mmcontext.SeparableFlexConv2d', kernel_size_override=9, kernel_cfg=KERNEL)
    plain = backbones.ResNet(50, base_channels=4)
    net = backbones.ResNet(50, base_channels=4, dcn=dcn,
                           stage_with_dcn=(False, False, False, True))
    assert isinstance(net.layer4[0].conv2, layers.SeparableFlexConv2d)
    x = torch.randn(2, 3, 64, 64)
    assert [y.shape for y in net(x)] == [y.shape for y in plain(x)]


@pytest.mark.parametrize('padding, expected', [(1, (4, 4)), (0, (3, 3)), (3, (6, 6))])
def test_override_keeps_the_output_size(padding, expected):
    plain = nn.Conv2d(4, 4, 3, padding=padding)
    layer = build('CKConv', 2, 4, 4, 3, padding=padding, kernel_size_override=9)
    x = sample(2).repeat(1, 1, 2, 2)
    assert layer(x).shape == plain(x.float()).shape
    assert layer._pads(layer.kernel.window()) == tuple((n, n) for n in expected)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('causal', [False, True])
def test_frozen_kernels_compute_the_same(family, causal):
    layer = build(family, 2, 4, 6, 7, causal=causal, stride=2).eval()
    x = sample(2)
    model = nn.Sequential(layer, nn.ReLU())
    expected = model(x)
    freeze_kernels(model)
    assert not any(isinstance(m, CKConvNd) for m in model.modules())
    assert_close(model(x), expected)


@COMPILES
def test_compiles_and_is_never_stale():
    layer = build('SeparableFlexConv', 1, 4, 4, 9).eval()
    compiled = torch.compile(layer, backend='aot_eager')
    x = sample(1)
    with torch.no_grad():
        for _ in range(2):
            assert_close(compiled(x), fresh_output(layer, x))
            layer.kernel_net.output_linear.weight.mul_(2)
            layer.mask_width.mul_(2)


@since_torch('2.3', 'torch.export with strict=False')
@pytest.mark.parametrize('name', ['SeparableFlexConv', 'CKConv'])
def test_exports(name):
    layer = build(name, 2, 4, 4, 9).eval()
    x = sample(2)
    with torch.no_grad():
        expected = layer(x)
        program = torch.export.export(layer, (x, ), strict=False)
        assert_close(program.module()(x), expected)
        traced = torch.jit.trace(layer, x)
        assert_close(traced(x), expected)


@since_torch('2.5', 'torch.export with a range of sizes, as written here')
def test_exports_with_any_size():
    layer = layers.CKConv1d(4, 4, 9).eval()
    layer(sample(1))
    sizes = {2: torch.export.Dim('length', min=12, max=4000)}
    program = torch.export.export(layer, (torch.randn(2, 4, 40), ), dynamic_shapes=(sizes, ),
                                  strict=False)
    x = torch.randn(2, 4, 77)
    assert_close(program.module()(x), layer(x))


def test_autocast_samples_in_single_precision():
    layer = layers.SeparableFlexConv1d(4, 4, 65, mask_cfg=dict(init=1.)).eval()
    x = torch.randn(2, 4, 80)
    expected = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x.bfloat16())
        assert layer.sample_kernel().dtype == torch.float32
    assert y.dtype == torch.bfloat16
    # bfloat16 rounds x, the kernel and each result.
    assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('arguments, message', [
    (dict(in_channels=0), 'in_channels and out_channels must be'),
    (dict(groups=3), 'groups must divide'),
    (dict(kernel_size='full'), "kernel_size must be 'same'"),
    (dict(kernel_size=(3, 3, 3)), 'kernel_size of FlexConv2d must be an int or 2 ints'),
    (dict(stride=0), 'stride of FlexConv2d'),
    (dict(resolution=0), 'resolution must be positive'),
    (dict(mask_cfg=dict(sigma=1)), r"mask_cfg knows .* got \['sigma'\]"),
    (dict(mask_cfg=dict(init=0)), 'init > 0'),
    (dict(mask_cfg=dict(threshold=1)), 'threshold < 1'),
    (dict(kernel_cfg=dict(hidden_channels=0)), 'hidden_channels must be'),
    (dict(kernel_cfg=dict(type='SIREN', num_layers=1)), 'num_layers must be at least 2'),
    (dict(kernel_cfg=dict(type='RandomFourierNet', hidden_channels=3)), 'must be even'),
])
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.FlexConv2d(**dict(dict(in_channels=4, out_channels=4, kernel_size=3), **arguments))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r'FlexConv2d takes \[B, 4\] and 2 spatial axes'):
        layers.FlexConv2d(4, 4, 3)(torch.zeros(1, 4, 9))
    with pytest.raises(RuntimeError, match="kernel_size 'same' and has seen no input"):
        layers.FlexConv2d(4).sample_kernel()
