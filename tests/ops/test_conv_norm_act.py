"""Convolution, norm, residual and activation in one call: against float64, and which method."""
import random
import re

import pytest
import torch
import torch.nn.functional as F
from tolerances import SINGLE, assert_close, assert_near
from torch.utils.flop_counter import FlopCounterMode

from mmcontext.ops import conv_norm_act, explain_conv_norm_act, native_library
from mmcontext.ops.conv_norm_act import (
    METHOD_VARIABLE,
    BatchNorm,
    Convolution,
    GroupNorm,
    channel_means,
)
from mmcontext.ops.conv_norm_act.reference import compose
from mmcontext.ops.layout import layout_of
from mmcontext.ops.native_library import instruction_sets

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}
needs_library = pytest.mark.skipif(not instruction_sets(), reason='installed without a compiler')


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=instruction_sets())
def isa(request, monkeypatch):
    monkeypatch.setenv('MMCONTEXT_CPU_ISA', request.param)


def _by_pixel(x):
    return x.contiguous(memory_format=torch.channels_last)


def _norm(kind, channels):
    weight, bias, mean, variance = torch.rand(4, channels) + 0.5
    return {'none': None,
            'batch': BatchNorm(mean, variance, weight, bias, 1e-3),
            'batch-plain': BatchNorm(mean, variance),
            'group': GroupNorm(channels // 3 if channels % 3 == 0 else 1, weight, bias),
            'group-plain': GroupNorm(1)}[kind]


def _double(part):
    return None if part is None else type(part)(
        *(value.double() if isinstance(value, torch.Tensor) else value for value in part))


# Relative to the largest value: 2e-6 for sums rounded once, 5e-6 with a convolution before them.
def _check(x, conv, norm, activation, residual, method, tolerance):
    expected = compose(x.double(), _double(conv), _double(norm), activation,
                       None if residual is None else residual.double())
    before = x.clone()
    actual = conv_norm_act(x, conv, norm, activation, residual, method)
    assert torch.equal(x, before) and actual.dtype is torch.float32
    assert_near(actual, expected, tolerance)
    return actual


@needs_library
@pytest.mark.parametrize('seed', range(40))
def test_convolution_equals_float64(isa, seed):
    """Random geometries, norms and residuals; 5e-6 of the largest value."""
    torch.manual_seed(seed)
    choose = random.Random(seed).choice
    groups, depth = choose([1, 1, 2, 4]), choose([1, 3, 16, 17, 40])
    outputs = choose([5, 16, 72, 130])
    kernel = choose([1, 1, 3, 5]), choose([1, 2, 3])
    conv = Convolution(torch.randn(groups * outputs, depth, *kernel),
                       choose([None, torch.randn(groups * outputs)]),
                       (choose([1, 2]), choose([1, 3])), (choose([0, 1, 3]), choose([0, 2])),
                       (choose([1, 2]), choose([1, 3])), groups)
    if seed % 2:
        conv = conv._replace(weight=_by_pixel(conv.weight))
    x = _by_pixel(torch.randn(choose([1, 3]), groups * depth, choose([9, 15]), choose([9, 26])))
    norm = _norm(choose(['none', 'batch', 'batch', 'batch-plain', 'group']), groups * outputs)
    shape = compose(x, conv, None, 'none', None).shape
    residual = choose([None, _by_pixel(torch.randn(shape)), torch.randn(shape),
                       torch.randn(*shape[:2], 1, 1)])
    activation = choose(['none', 'relu', 'silu'])
    own = _check(x, conv, norm, activation, residual, 'own', 5e-6)
    assert own.is_contiguous(memory_format=layout_of(x))
    for other in (x, x.contiguous()):
        _check(other, conv, norm, activation, residual, 'library', 5e-6)


@needs_library
@pytest.mark.parametrize('activation', ['none', 'relu', 'silu'])
@pytest.mark.parametrize('kind', ['batch', 'batch-plain', 'group', 'group-plain', 'none'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_norm_equals_float64(isa, layout, kind, activation):
    """2e-6 of the largest value."""
    torch.manual_seed(0)
    # Rows that fill vectors of all, some and no widths; rows of one; several chunks of pixels.
    for shape in ((2, 48, 5, 7), (1, 24, 9, 31), (3, 21, 2, 2), (2, 12, 1, 1)):
        x, residual = ((20 * torch.randn(shape) + 5).contiguous(memory_format=LAYOUTS[layout])
                       for _ in range(2))
        for other in (None, residual):
            y = _check(x, None, _norm(kind, shape[1]), activation, other, 'auto', 2e-6)
            assert y.stride() == x.stride()


@needs_library
@pytest.mark.parametrize('stride', [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (11, 30)], ids=str)
def test_pointwise_strides_of_the_library(size, layout, stride):
    for channels in ((32, 8), (8, 32), (1, 1)):
        x = torch.randn(3, channels[0], *size).contiguous(memory_format=LAYOUTS[layout])
        conv = Convolution(torch.randn(channels[1], channels[0], 1, 1), None, stride)
        y = _check(x, conv, None, 'none', None, 'library', 5e-6)
        assert y.is_contiguous(memory_format=LAYOUTS[layout])


@needs_library
@pytest.mark.parametrize('layout', LAYOUTS)
def test_nan_stays_and_extremes_are_tame(layout):
    x = torch.tensor([float('nan'), 1e30, -1e30, 100., -100., 0.]).repeat(1, 16, 3, 1)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    norm = BatchNorm(torch.zeros(16), torch.ones(16), eps=0.)
    for activation, function in (('relu', F.relu), ('silu', F.silu)):
        # silu(-100) is subnormal in torch, and zero here.
        assert_close(conv_norm_act(x, None, norm, activation), function(x), equal_nan=True,
                     rtol=1e-6, atol=1e-35)


@needs_library
def test_group_norm_far_from_zero():
    """A mean of a thousand standard deviations, where a one-pass variance loses all digits."""
    for layout in LAYOUTS.values():
        x = (torch.randn(1, 32, 20, 20) + 1000).contiguous(memory_format=layout)
        error = conv_norm_act(x, None, GroupNorm(4)) - F.group_norm(x.double(), 4)
        assert error.abs().max() < 1e-3  # float32 has steps of 6e-5 at 1000


@needs_library
def test_strides_of_single_rows_do_not_matter_and_gaps_are_served():
    """A slice of a larger tensor is contiguous whatever the stride of an axis of size one."""
    norm, x = _norm('batch', 4), torch.randn(1, 4, 3, 2)
    for strides in ((999, 6, 2, 1), (1, 1, 8, 4), (96, 24, 4, 2)):
        odd = torch.empty_strided((1, 4, 3, 2), strides).copy_(x)
        for residual in (odd, x, _by_pixel(x)):
            _check(odd, None, norm, 'relu', residual, 'auto', 2e-6)


def test_many_pixels_are_divided_among_threads():
    """Pixels that do not divide evenly, and more threads than the machine has cores."""
    x, conv = _by_pixel(torch.randn(2, 24, 37, 41)), Convolution(torch.randn(80, 24, 1, 1))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 5):
            torch.set_num_threads(threads)
            _check(x, conv, None, 'none', None, 'auto', 5e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('method', ['own', 'library', 'torch'])
def test_empty_batch(method):
    if method != 'torch' and not instruction_sets():
        pytest.skip('installed without a compiler')
    x = torch.empty(0, 16, 5, 5, memory_format=torch.channels_last)
    y = conv_norm_act(x, Convolution(torch.randn(8, 16, 3, 3)), _norm('batch', 8), method=method)
    assert y.shape == (0, 8, 3, 3)
    assert conv_norm_act(x, None, GroupNorm(4), 'relu').shape == x.shape


@needs_library
@pytest.mark.parametrize('changes, message', [
    (dict(conv=Convolution(torch.randn(8, 15, 3, 3))), 'do not go with'),
    (dict(conv=Convolution(torch.randn(8, 16, 3, 3), groups=3)), 'do not go with'),
    (dict(conv=Convolution(torch.randn(8, 16, 3, 3), stride=(0, 1))), 'stride must be'),
    (dict(conv=Convolution(torch.randn(8, 16, 3, 3), padding=(0, -1))), 'padding must be'),
    (dict(conv=Convolution(torch.randn(8, 16, 3, 3), dilation=(4, 1))), 'does not fit'),
    (dict(conv=Convolution(torch.randn(8, 16, 3, 3), torch.randn(9))), 'bias must be'),
    (dict(norm=BatchNorm(torch.randn(8), None)), 'mean and variance'),
    (dict(norm=BatchNorm(torch.randn(7), torch.ones(8))), r'mean must be float32 \[8\]'),
    (dict(norm=GroupNorm(3)), 'norm_groups must divide 8'),
    (dict(activation='gelu'), 'activation must be'),
    (dict(method='onednn'), "method must be .* got 'onednn'"),
], ids=lambda value: value if isinstance(value, str) else '')
def test_bad_arguments(changes, message):
    arguments = dict(x=_by_pixel(torch.randn(1, 16, 5, 5)), method='own',
                     conv=Convolution(torch.randn(8, 16, 3, 3)))
    with pytest.raises(ValueError, match=message):
        conv_norm_act(**{**arguments, **changes})


X = _by_pixel(torch.randn(2, 16, 9, 8))


@needs_library
@pytest.mark.parametrize('x, conv, chosen, reason', [
    (X, Convolution(torch.randn(32, 16, 3, 3)), 'own', None),
    (X, None, 'own', None),
    (X.contiguous(), Convolution(torch.randn(32, 16, 3, 3)), 'library', 'not channels-last'),
    (X, Convolution(torch.randn(32, 32, 3, 3)[:, ::2]), 'library', 'weight has gaps'),
    (X, Convolution(torch.randn(8, 16, 3, 3)), 'library', 'so few outputs'),
    (X, Convolution(torch.randn(32, 4, 3, 3), groups=4), 'library', 'fewer than 16 channels'),
    (X[:1, :, :1, :2], Convolution(torch.randn(32, 16, 1, 1)), 'library', 'fewer than 8 pixels'),
    (X.double(), Convolution(torch.randn(32, 16, 3, 3)), 'torch', 'torch.float64'),
    (X[0], None, 'torch', r'\(16, 9, 8\)'),
    (torch.nn.Parameter(X), None, 'torch', 'Parameter'),
])
def test_explained(x, conv, chosen, reason, monkeypatch):
    answer = explain_conv_norm_act(x, conv)
    assert answer['chosen'] == chosen
    assert list(answer['refused']) == {'own': [], 'library': ['own'],
                                       'torch': ['own', 'library']}[chosen]
    if reason:
        assert all(re.search(reason, text) for text in answer['refused'].values())
    monkeypatch.setenv(METHOD_VARIABLE, 'torch')
    assert explain_conv_norm_act(x, conv)['chosen'] == 'torch'


@needs_library
def test_who_serves(monkeypatch):
    conv, norm = Convolution(torch.randn(32, 16, 3, 3)), _norm('batch', 32)

    def operators(x=X, **options):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            conv_norm_act(x, conv, norm, 'relu', **options)
        return {event.key for event in profile.key_averages()}

    assert 'mmcontext::conv_norm_act' in operators() and 'aten::conv2d' not in operators()
    both = operators(method='library')
    assert {'mmcontext::conv_norm_act', 'aten::conv2d'} <= both and 'aten::relu' not in both
    assert 'mmcontext::conv_norm_act' not in operators(method='torch')
    monkeypatch.setenv(METHOD_VARIABLE, 'library')
    assert 'aten::conv2d' in operators()
    monkeypatch.setenv(METHOD_VARIABLE, 'fast')
    with pytest.raises(ValueError, match="MMCONTEXT_CONV_NORM_ACT must be .* got 'fast'"):
        operators()
    with pytest.raises(RuntimeError, match="'own' .* does not .*: it serves float32 maps"):
        operators(X.double(), method='own')
    with pytest.raises(RuntimeError, match="'own' .* does not .*: x is not channels-last"):
        operators(X.contiguous(), method='own')


def test_gradients_are_those_of_standard_functions():
    conv, norm = Convolution(torch.randn(4, 3, 3, 3).double()), _double(_norm('batch', 4))
    x, residual = torch.randn(1, 3, 5, 5).double(), torch.randn(1, 4, 3, 3).double()
    with torch.enable_grad():
        operands = [t.requires_grad_() for t in (x, conv.weight, residual)]
        assert torch.autograd.gradcheck(
            lambda x, w, r: conv_norm_act(x, conv._replace(weight=w), norm, 'silu', r), operands)


def _raw(x, weight):
    return torch.ops.mmcontext.conv_norm_act(x, weight, None, (1, 1), (1, 1), (1, 1), 1, None,
                                             None, None, None, 0., 4, None, 'relu', 'auto')


@needs_library
def test_the_operator_itself_has_a_shape_but_no_derivative():
    weight = torch.randn(32, 16, 3, 3)
    if hasattr(torch.library, 'opcheck'):  # torch 2.4
        torch.library.opcheck(torch.ops.mmcontext.conv_norm_act.default, (
            X, weight, None, (1, 1), (1, 1), (1, 1), 1, None, None, None, None, 0., 4, None,
            'relu', 'auto'), test_utils=('test_schema', 'test_faketensor'))
    with torch.enable_grad():
        assert _raw(X, weight).shape == (2, 32, 9, 8)
        with pytest.raises(RuntimeError, match='no derivative'):
            _raw(X, weight.requires_grad_())


def test_low_precision_transforms_and_counters_take_standard_functions():
    conv, norm = Convolution(torch.randn(32, 16, 3, 3)), _norm('batch', 32)
    expected = conv_norm_act(X, conv, norm, 'relu', method='torch')

    def call(x):
        return conv_norm_act(x, conv, norm, 'relu')

    each = torch.func.vmap(lambda sample: call(sample[None])[0])(X)
    assert_close(each, expected)
    assert_close(torch.func.jvp(call, (X, ), (X, ))[0], expected)
    with torch.autocast('cpu', torch.bfloat16):
        assert call(X).dtype is torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        call(X)
    assert counter.get_total_flops() == 2 * expected.numel() * 16 * 9


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shape', [(2, 24, 9, 31), (1, 21, 1, 1), (3, 5, 1, 70)], ids=str)
def test_channel_means(shape, layout):
    maps = [torch.randn(shape).contiguous(memory_format=LAYOUTS[layout]) + 3 for _ in range(2)]
    maps.append(torch.randn(shape))
    expected = sum(x.double().mean((2, 3), keepdim=True) for x in maps)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert_close(channel_means(*maps).double(), expected, SINGLE)
    gaps = [torch.stack((x, x), -1)[..., 0] for x in maps]
    assert_close(channel_means(*gaps).double(), expected, SINGLE)


def test_without_the_library(monkeypatch):
    conv, norm = Convolution(torch.randn(32, 16, 3, 3)), _norm('batch', 32)
    expected = conv_norm_act(X, conv, norm, 'relu')
    monkeypatch.setattr(native_library, 'UNAVAILABLE', 'not compiled')
    assert explain_conv_norm_act(X, conv) == {
        'chosen': 'torch', 'refused': dict.fromkeys(('own', 'library'), 'not compiled')}
    assert_close(conv_norm_act(X, conv, norm, 'relu'), expected)
