import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from tolerances import DOUBLE_LAYERS, assert_close
from torch import nn

from mmcontext.layers import (
    CoConv2d,
    CoT2d,
    CVolution2d,
    Involution2d,
    PyConv2d,
    SplitAttention2d,
)
from mmcontext.layers.blur_pool import BlurPool2d
from mmcontext.layers.max_pool import MaxPool2d

LAYERS = [CoConv2d, PyConv2d, CoT2d, Involution2d, CVolution2d, SplitAttention2d]
DYNAMIC = [CoT2d, Involution2d, CVolution2d]


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (9, 12)], ids=str)
@pytest.mark.parametrize('stride', [1, 2, (2, 1)], ids=str)
@pytest.mark.parametrize('layer', LAYERS)
def test_sizes_are_those_of_a_3x3_convolution(layer, stride, size):
    x = torch.randn(2, 64, *size)
    expected = nn.Conv2d(64, 128, 3, stride, padding=1)(x)
    assert layer(64, 128, stride=stride).eval()(x).shape == expected.shape


@pytest.mark.parametrize('options', [
    dict(kernel_size=3, padding=1, dilation=1), dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=3, padding=1, dilation=1, stride=2)
], ids=str)
@pytest.mark.parametrize('layer', LAYERS)
def test_layer_as_conv_cfg(layer, options):
    x = torch.randn(2, 64, 8, 11)
    module = ConvModule(64, 64, **options, norm_cfg=dict(type='BN'),
                        conv_cfg=dict(type=f'mmcontext.{layer.__name__}'))
    expected = nn.Conv2d(64, 64, **options)(x)
    assert isinstance(module.conv, layer)
    assert module(x).shape == expected.shape


@pytest.mark.parametrize('layer', [CoConv2d, PyConv2d, CoT2d, Involution2d, CVolution2d])
def test_kernel_size_override_keeps_the_output_size(layer):
    cfg = dict(type=f'mmcontext.{layer.__name__}', kernel_size_override=5)
    module = build_conv_layer(cfg, 64, 64, 3, stride=2, padding=1, bias=False)
    assert module.kernel_size == (5, 5)
    assert module(torch.randn(2, 64, 9, 8)).shape == (2, 64, 5, 4)


@pytest.mark.parametrize('layer, options', [
    (Involution2d, dict(kernel_size=7, padding=0)),
    (Involution2d, dict(kernel_size=4, padding=1, stride=3)),
    (CVolution2d, dict(kernel_size=3, padding=3, stride=2)),
    (CoConv2d, dict(kernel_size=3, padding=0)),
    (PyConv2d, dict(kernel_size=3, padding=0, stride=2)),
])
def test_any_padding_gives_the_size_of_conv2d(layer, options):
    x = torch.randn(1, 64, 13, 18)
    assert layer(64, 64, **options).eval()(x).shape == nn.Conv2d(64, 64, **options)(x).shape


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('layer', LAYERS)
def test_every_parameter_gets_a_gradient(layer, bias):
    module = layer(64, 128, bias=bias)
    module(torch.randn(2, 64, 6, 6)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('layer', LAYERS)
def test_channels_last_gives_the_same(layer):
    module = layer(64, 64).eval().double()
    x = torch.randn(2, 64, 6, 5, dtype=torch.float64)
    assert_close(module(x.to(memory_format=torch.channels_last)), module(x))


def test_coconv_is_dilated_convolutions_side_by_side():
    layer = CoConv2d(8, 16, levels=3).double()
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    assert [conv.out_channels for conv in layer.convs] == [8, 4, 4]
    parts = [F.conv2d(x, conv.weight, padding=d, dilation=d)
             for d, conv in enumerate(layer.convs, 1)]
    assert_close(layer(x), torch.cat(parts, 1))


def test_pyconv_is_grouped_convolutions_side_by_side():
    layer = PyConv2d(16, 64).double()
    x = torch.randn(1, 16, 9, 9, dtype=torch.float64)
    parts = [F.conv2d(x, conv.weight, padding=k // 2, groups=g)
             for conv, k, g in zip(layer.convs, (3, 5, 7, 9), (1, 4, 8, 16))]
    assert_close(layer(x), torch.cat(parts, 1))


def test_dilated_pyconv_dilates_every_level():
    layer = PyConv2d(64, 64, groups=(1, 4), dilation=2)
    assert [conv.dilation for conv in layer.convs] == [(2, 2), (2, 2)]
    assert [conv.padding for conv in layer.convs] == [(2, 2), (4, 4)]


def dynamic_sum(x, kernels, kernel_size, padding):
    batch, channels, height, width = x.shape
    columns = F.unfold(x, kernel_size, padding=padding).view(batch, channels, -1, height, width)
    return (columns * kernels).sum(2)


def test_involution_by_its_definition():
    layer = Involution2d(32, kernel_size=5, group_channels=8).double()
    x = torch.randn(2, 32, 6, 7, dtype=torch.float64)
    kernels = layer.span(layer.reduce(x)).view(2, 4, 25, 6, 7).repeat_interleave(8, 1)
    assert_close(layer(x), dynamic_sum(x, kernels, 5, 2))


@pytest.mark.parametrize('kernel_size', [3, 5, 7])
def test_cvolution_by_its_definition(kernel_size):
    layer = CVolution2d(32, kernel_size=kernel_size, gate_groups=4).double()
    x = torch.randn(2, 32, 6, 7, dtype=torch.float64)
    gate = F.conv2d(x, layer.gate.weight, padding=kernel_size // 2, groups=4).mean((2, 3), True)
    kernels = layer.span(layer.reduce(x)).view(2, 2, -1, 6, 7).repeat_interleave(16, 1)
    assert_close(layer(x), dynamic_sum(x * gate, kernels, kernel_size, kernel_size // 2))


def test_cvolution_of_less_than_its_gate():
    layer = CVolution2d(32, kernel_size=1, gate_groups=4)
    assert layer(torch.randn(1, 32, 3, 3)).shape == (1, 32, 3, 3)
    with pytest.raises(ValueError, match=r'at least \(3, 3\) for kernel_size \(1, 1\)'):
        layer(torch.randn(1, 32, 2, 3))


@pytest.mark.parametrize('cardinality', [1, 2])
def test_cot_by_its_definition(cardinality):
    layer = CoT2d(32, cardinality=cardinality).double().eval()
    x = torch.randn(2, 32, 6, 7, dtype=torch.float64)
    key = layer.key(x)
    if cardinality == 1:
        joined = torch.cat((x, key), 1)
    else:
        joined = torch.stack((x, key), 2).view(2, 64, 6, 7)
    kernels = layer.span_norm(layer.span(layer.embed(joined)))
    share = 32 // 8 // cardinality
    value = layer.value(x).view(2 * cardinality, -1, 6, 7)
    kernels = kernels.view(2 * cardinality, share, 9, 6, 7).repeat(1, 8, 1, 1, 1)
    dynamic = F.silu(layer.norm(dynamic_sum(value, kernels, 3, 1).view(2, 32, 6, 7)))
    weights = layer.attend((dynamic + key).mean((2, 3), True)).view(2, 32, 2).softmax(2)
    expected = (dynamic * weights[:, :, 0, None, None] + key * weights[:, :, 1, None, None])
    assert_close(layer(x), expected)


def test_blur_pool_keeps_a_constant_and_rounds_up():
    x = torch.full((1, 3, 7, 1), 2.5)
    y = BlurPool2d(2)(x)
    assert_close(y, torch.full((1, 3, 4, 1), 2.5))


@pytest.mark.parametrize('layer, arguments, message', [
    (CoConv2d, dict(in_channels=8, out_channels=10), 'divisible by 4, got 10'),
    (CoConv2d, dict(in_channels=8, out_channels=16, levels=9), 'levels of CoConv2d'),
    (CoConv2d, dict(in_channels=8, out_channels=16, out_splits=(8, 4)), 'add up to out_channels'),
    (CoConv2d, dict(in_channels=8, out_channels=16, out_splits=(8, 8), dilations=(1, 2, 3)),
     '2 out_splits, 2 kernel sizes, 3 dilations'),
    (PyConv2d, dict(in_channels=24, out_channels=64), 'divisible by its 16 groups'),
    (PyConv2d, dict(in_channels=64, out_channels=64, kernel_size=(3, 4), groups=(1, 1)),
     'cannot be centred'),
    (PyConv2d, dict(in_channels=64, kernel_size=3.), 'kernel_size of PyConv2d must be .* got 3.0'),
    (CoT2d, dict(in_channels=20), 'divisible by 8, got 20'),
    (CoT2d, dict(in_channels=32, kernel_size=4), 'must be odd'),
    (CoT2d, dict(in_channels=32, padding=0), 'padding of CoT2d must keep the size'),
    (CoT2d, dict(in_channels=32, cardinality=3), 'cardinality of CoT2d must be 1 or 2'),
    (Involution2d, dict(in_channels=40), 'in_channels=40 of Involution2d is not divisible by '
     'group_channels=16'),
    (CVolution2d, dict(in_channels=48, gate_groups=5), 'gate_groups=5'),
    (Involution2d, dict(in_channels=32, groups=2), 'groups of Involution2d must be 1'),
    (Involution2d, dict(in_channels=32, stride=0), 'stride must be'),
    (CoT2d, dict(in_channels=32, kernel_size=3.), r'int or 2 ints, at least 1, got 3.0'),
    (CoConv2d, dict(in_channels=0, out_channels=16), 'in_channels of CoConv2d must be'),
])
def test_bad_arguments_are_named(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(**arguments)


@pytest.mark.parametrize('grad', [False, True])
def test_max_pool_is_that_of_torch_in_the_layout_of_its_input(grad):
    x = torch.randn(2, 5, 17, 9, requires_grad=grad)
    for y in (x, x.to(memory_format=torch.channels_last)):
        pooled = MaxPool2d(3, stride=2, padding=1)(y)
        assert torch.equal(pooled, F.max_pool2d(x, 3, stride=2, padding=1))
        assert pooled.is_contiguous() == y.is_contiguous()
        assert pooled.requires_grad == grad


@pytest.mark.parametrize('layer', [*DYNAMIC, SplitAttention2d])
def test_bad_inputs_are_named(layer):
    for shape in ((32, 9, 9), (1, 16, 9, 9)):
        with pytest.raises(ValueError, match=rf'input of {layer.__name__} must be \[B, 32, H, W\]'):
            layer(32)(torch.zeros(shape))
    with pytest.raises(ValueError, match=r'must be larger than \(2, 2\) .*, got shape \(1, 32, 1'):
        Involution2d(32, kernel_size=3, padding=0)(torch.zeros(1, 32, 1, 9))


@pytest.mark.parametrize('layer', [PyConv2d(64), CoConv2d(16)])
def test_pyramids_take_one_image_as_conv2d_does(layer):
    x = torch.randn(layer.in_channels, 8, 8)
    assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('layer', [Involution2d, CVolution2d])
def test_an_empty_batch_passes(layer, fused):
    assert layer(32, fused=fused).eval()(torch.zeros(0, 32, 8, 8)).shape == (0, 32, 8, 8)


@pytest.mark.parametrize('layer', [Involution2d, CVolution2d])
def test_kernels_by_rows_are_those_of_the_convolution(layer, monkeypatch):
    module = layer(32, stride=2).double()
    x = torch.randn(2, 32, 9, 10, dtype=torch.float64).to(memory_format=torch.channels_last)
    parameters = list(module.parameters())
    cotangent = torch.randn(2, 32, 5, 5, dtype=torch.float64)
    results = []
    for rows in (False, True):
        monkeypatch.setattr('mmcontext.layers.involution.wants_rows', lambda r, rows=rows: rows)
        kernels = module.kernels(x)
        assert kernels.is_contiguous() == rows
        y = module(x)
        results.append((kernels, y, *torch.autograd.grad(y, parameters, cotangent)))
    for expected, actual in zip(*results):
        assert_close(actual, expected, DOUBLE_LAYERS)
