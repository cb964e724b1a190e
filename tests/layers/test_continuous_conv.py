import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from common import COMPILES
from mmcv.cnn import ConvModule
from mmengine.registry import init_default_scope
from tolerances import DOUBLE, DOUBLE_LAYERS, assert_close

from mmcontext import layers
from mmcontext.layers import freeze_kernels, set_resolution
from mmcontext.layers.ckconv import CKConvNd
from mmcontext.ops import native_library
from mmcontext.registry import MODELS

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (12, ), 2: (9, 7), 3: (5, 4, 6)}
KERNEL = dict(hidden_channels=6, num_layers=2, omega_0=2.)
FAMILIES = ['CKConv', 'SeparableCKConv', 'FlexConv', 'SeparableFlexConv']
NETS = ['MAGNet', 'GaborNet', 'FourierNet', 'RandomFourierNet', 'SIREN', 'KernelMLP',
        'RandomFeatureNet']


def build(name, dim, *args, **kwargs):
    kwargs.setdefault('kernel_cfg', KERNEL)
    if 'Flex' in name:
        # Wide enough that kernels of a few taps keep some.
        kwargs.setdefault('mask_cfg', dict(init=0.5))
    return getattr(layers, f'{name}{dim}d')(*args, **kwargs).double()


def sample(dim, channels=4):
    return torch.randn(2, channels, *SIZES[dim], dtype=torch.float64)


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
    """A cropped kernel acts like the whole one with its outer taps set to zero."""
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
    # The mask is at its threshold where the kernel ends, give or take a tap.
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
    # Centres start inside the box, on its newest side when causal.
    causal = layers.MAGNet(1, 3, init_box=0.2, causal=True)
    assert all(f.mu.min() >= 0.8 and f.mu.max() <= 1 for f in causal.filters)


# Point 3 of the design: the kernel is a function, not a table.


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
    """Twice the resolution of data and kernel: outputs agree to 2 % on band-limited input.

    The coarse kernel is a Riemann sum of the same integral; the tolerance is what is left of it
    with the mask cut off at 1e-6. A causal kernel ends at its largest value, which costs half a
    tap, so it gets more of them.
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
    # Borders see the zero padding, whose edge lies half a coarse pixel elsewhere.
    inner = (..., *(slice(taps, None) if causal else slice(taps // 2, -(taps // 2)), ) * dim)
    difference = (fine - coarse)[inner].norm() / coarse[inner].norm()
    assert 0 < difference < 0.02
    # The same with a kernel that is not rescaled would be off by a factor of 2^dim.
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


# The cache.


@pytest.fixture(params=['CKConv', 'SeparableFlexConv', 'CKConv-without-library'])
def cached(request, monkeypatch):
    if request.param.endswith('-without-library'):
        monkeypatch.setattr(native_library, 'UNAVAILABLE', 'not compiled')
    layer = build(request.param.split('-')[0], 1, 4, 4, 9).eval()
    x = sample(1)
    with torch.no_grad():
        layer(x)
    return layer, x


def counted(layer, x):
    """Output, and how often the kernel was sampled for it."""
    kernel = layer.kernel
    calls, weigh = [], kernel._weigh
    kernel._weigh = lambda *args: calls.append(1) or weigh(*args)
    y = layer(x)
    del kernel._weigh
    return y, len(calls)


def fresh_output(layer, x):
    layer = copy.deepcopy(layer)
    layer.cache = False
    return layer(x)


@torch.no_grad()
def test_unchanged_layer_samples_once(cached):
    layer, x = cached
    y, calls = counted(layer, x)
    assert calls == 0 and torch.equal(y, fresh_output(layer, x))


def test_gradients_bypass_the_cache(cached):
    layer, x = cached
    y, calls = counted(layer, x)
    assert calls == 1
    y.sum().backward()
    assert layer.kernel_net.output_linear.weight.grad is not None


def test_frozen_layers_are_cached_with_gradients_on(cached):
    layer, x = cached
    x.requires_grad_()
    layer.requires_grad_(False)
    layer(x)
    y, calls = counted(layer, x)
    assert calls == 0
    y.sum().backward()
    assert x.grad is not None


def in_place(layer):
    layer.kernel_net.output_linear.weight.mul_(2)


def through_data(layer):
    # As exponential moving averages do; it leaves the version counter alone.
    weight = layer.kernel_net.output_linear.weight
    version = weight._version
    weight.data.copy_(weight.data * 2)
    assert weight._version == version


def new_data(layer):
    layer.kernel_net.output_linear.weight.data = layer.kernel_net.output_linear.weight.data * 2


def new_parameter(layer):
    layer.kernel_net.output_linear.weight = nn.Parameter(
        layer.kernel_net.output_linear.weight * 2)


def single_element(layer):
    layer.kernel_net.filters[1].mu[2, 0] += 0.5


def load_state_dict(layer):
    layer.load_state_dict({k: v * 2 if v.is_floating_point() else v
                           for k, v in layer.state_dict().items()})


def optimizer_step(layer):
    layer.requires_grad_()
    with torch.enable_grad():
        layer(sample(1)).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def train_and_back(layer):
    layer.train()
    layer.kernel_net.output_linear.weight.data.mul_(2)
    layer.eval()


@pytest.mark.parametrize('change', [
    in_place, through_data, new_data, new_parameter, single_element, load_state_dict,
    optimizer_step, train_and_back])
@torch.no_grad()
def test_changed_parameters_are_noticed(cached, change):
    layer, x = cached
    before = layer(x)
    change(layer)
    after, calls = counted(layer, x)
    assert calls == 1
    assert not torch.allclose(after, before)
    assert torch.equal(after, fresh_output(layer, x))
    assert counted(layer, x)[1] == 0


@pytest.mark.skipif(bool(native_library.UNAVAILABLE), reason='installed without a compiler')
def test_comparison_of_values():
    """Gaps in memory, NaN and tensors of other sizes and dtypes."""
    same = torch.ops.mmcontext_native.same_values
    tensors = [torch.randn(3, 4).t(), torch.tensor(float('nan')), torch.zeros(0), torch.arange(3)]
    noted = torch.cat([t.reshape(-1) for t in tensors])
    assert same(tensors, noted)
    assert not same(tensors[:3], noted) and not same([*tensors, noted], noted)
    for index in (0, 1, 3):
        changed = [t.clone() for t in tensors]
        changed[index].select(-1, -1).fill_(7) if changed[index].dim() else changed[1].fill_(7)
        assert not same(changed, noted)


@torch.no_grad()
def test_changed_mask_is_noticed():
    layer = build('SeparableFlexConv', 1, 4, 4, 21).eval()
    x = sample(1)
    before = layer(x)
    for tensor, value in ((layer.mask_width, 0.3), (layer.mask_mean, 0.1),
                          (layer.mask_threshold, 0.5)):
        tensor.data.fill_(value)
        after = layer(x)
        assert not torch.allclose(after, before)
        assert torch.equal(after, fresh_output(layer, x))
        before = after


@torch.no_grad()
def test_changed_size_is_noticed(cached):
    layer, x = cached
    layer.load_state_dict({**layer.state_dict(), 'kernel.train_length': torch.tensor([13])})
    y = layer(x)
    assert layer.kernel.length == (13, ) and torch.equal(y, fresh_output(layer, x))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_changed_dtype_is_noticed(cached, dtype):
    layer, x = cached
    y, calls = counted(layer.to(dtype), x.to(dtype))
    assert calls == 1 and y.dtype == dtype
    assert torch.equal(y, fresh_output(layer, x.to(dtype)))
    y, calls = counted(layer.double(), x)
    assert calls == 1 and torch.equal(y, fresh_output(layer, x))


@torch.no_grad()
def test_changed_device_is_noticed(cached):
    layer, x = cached
    device = 'cuda' if torch.cuda.is_available() else 'meta'
    assert layer.to(device)(x.to(device)).device.type == device
    if device == 'meta':
        layer.to_empty(device='cpu')
        for p in layer.parameters():
            nn.init.normal_(p)
        nn.init.constant_(layer.train_length, 9)
        nn.init.constant_(layer.kernel.initialized, True)
        for name, value in (('mask_mean', 0.), ('mask_threshold', 0.1), ('mask_width', 0.2)):
            if hasattr(layer, name):
                nn.init.constant_(getattr(layer, name), value)
    else:
        layer.cpu()
    assert torch.equal(layer(x), fresh_output(layer, x))


def test_train_mode_never_uses_the_cache(cached):
    layer, x = cached
    layer.train()
    assert counted(layer, x)[1] == 1
    with torch.no_grad():
        assert counted(layer, x)[1] == 1


def test_inference_mode_leaves_nothing_unusable_behind(cached):
    layer, x = cached
    with torch.inference_mode():
        layer(x)
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None


def test_training_after_inference_mode():
    layer, x = layers.CKConv1d(2, 2, 7).eval(), torch.randn(1, 2, 9)
    with torch.inference_mode():
        layer(x)
    layer.train()(x).sum().backward()


def test_a_run_without_values_leaves_nothing_behind():
    with torch.device('meta'):
        layers.CKConv1d(2, 2, 7)(torch.zeros(1, 2, 9))
    assert layers.CKConv1d(2, 2, 7)(torch.zeros(1, 2, 9)).isfinite().all()


@torch.no_grad()
def test_cache_stays_out_of_copies_and_checkpoints(cached):
    layer, x = cached
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not other.kernel._kept and torch.equal(other(x), y)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    assert not any('kept' in key for key in layer.state_dict())


# Doors for other code.


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


@COMPILES
@pytest.mark.parametrize('name', ['SeparableFlexConv', 'CKConv'])
def test_exports(name):
    layer = build(name, 2, 4, 4, 9).eval()
    x = sample(2)
    with torch.no_grad():
        expected = layer(x)
        program = torch.export.export(layer, (x, ))
        assert_close(program.module()(x), expected)
        traced = torch.jit.trace(layer, x)
        assert_close(traced(x), expected)


def test_autocast_samples_in_single_precision():
    layer = layers.SeparableFlexConv1d(4, 4, 65, mask_cfg=dict(init=1.)).eval()
    x = torch.randn(2, 4, 80)
    expected = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x.bfloat16())
        assert layer.sample_kernel().dtype == torch.float32
    assert y.dtype == torch.bfloat16
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
