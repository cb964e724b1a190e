import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from common import COMPILES
from tolerances import assert_close

from mmcontext.ops.fft_conv import (
    METHOD_VARIABLE,
    choose_method,
    clear_measurements,
    convolve,
    direct_conv,
    explain_method,
    fast_fft_size,
    fft_conv,
)
from mmcontext.ops.fft_conv.geometry import conv_geometry

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# Relative to the largest value: the error of an FFT is spread over all outputs.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

# id: size, kernel, padding, stride, dilation
GEOMETRIES = {
    '1d-same': ((17, ), (5, ), 'same', 1, 1),
    '1d-causal-longer-than-x': ((13, ), (29, ), 'causal', 1, 1),
    '1d-same-longer-than-x': ((7, ), (18, ), 'same', 1, 1),
    '1d-even-dilated-strided': ((30, ), (6, ), 'same', 3, 2),
    '1d-valid': ((31, ), (8, ), 0, 1, 1),
    '1d-padding-wider-than-kernel': ((9, ), (3, ), 7, 1, 1),
    '1d-one-tap': ((9, ), (1, ), 0, 1, 1),
    '1d-long-rows': ((15, ), (17, ), 8, 2, 1),
    '1d-widely-dilated': ((20, ), (5, ), 'same', 1, 4),
    '2d-long-rows': ((6, 9), (3, 15), [(1, 1), (7, 7)], (1, 2), 1),
    '2d-rectangular': ((11, 18), (7, 3), 'same', 1, 1),
    '2d-even-rectangular': ((12, 9), (4, 6), 'same', 1, 1),
    '2d-causal': ((9, 10), (5, 7), 'causal', 1, 1),
    '2d-one-sided-strided-dilated': ((13, 15), (3, 4), [(0, 5), (2, 1)], (2, 3), (2, 1)),
    '3d-same': ((5, 8, 7), (3, 5, 2), 'same', 1, 1),
    '3d-causal': ((6, 4, 7), (2, 4, 3), 'causal', 1, 1),
    '3d-strided': ((6, 7, 8), (3, 3, 3), 1, 2, 1),
}
# id: channels in, out, groups
CHANNELS = {'full': (3, 5, 1), 'depthwise': (4, 4, 4), 'multiplier': (3, 6, 3),
            'grouped': (4, 6, 2)}


def oracle(x, w, b, padding, stride, dilation, groups):
    """torch's convolution on an explicitly padded input."""
    dim = x.dim() - 2
    dilations = (dilation, ) * dim if isinstance(dilation, int) else dilation
    extents = [d * (k - 1) for d, k in zip(dilations, w.shape[2:])]
    if padding == 'same':
        pairs = [(e // 2, e - e // 2) for e in extents]
    elif padding == 'causal':
        pairs = [(e, 0) for e in extents]
    elif isinstance(padding, int):
        pairs = [(padding, padding)] * dim
    else:
        pairs = padding
    x = F.pad(x, [n for pair in reversed(pairs) for n in pair])
    return CONV[dim](x, w, b, stride, 0, dilation, groups)


def make(geometry, channels, dtype=torch.float64):
    torch.manual_seed(0)
    size, kernel, *rest = geometry
    c, o, groups = channels
    x = torch.randn(2, c, *size, dtype=torch.float64).to(dtype).requires_grad_()
    w = torch.randn(o, c // groups, *kernel, dtype=torch.float64).to(dtype).requires_grad_()
    b = torch.randn(o, dtype=torch.float64).to(dtype).requires_grad_()
    return (x, w, b), (*rest, groups)


def relative(actual, expected):
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('channels', CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize('conv', [fft_conv, direct_conv])
def test_forward_and_gradients(conv, geometry, channels):
    tensors, (padding, stride, dilation, groups) = make(geometry, channels)
    expected = oracle(*tensors, padding, stride, dilation, groups)
    actual = conv(*tensors, stride, padding, dilation, groups)
    assert actual.shape == expected.shape and actual.dtype == torch.float64
    assert relative(actual, expected) < 1e-10  # shares of the largest value, as in TOLERANCE
    gy = torch.randn_like(expected)
    for mine, theirs in zip(torch.autograd.grad(actual, tensors, gy),
                            torch.autograd.grad(expected, tensors, gy)):
        assert relative(mine, theirs) < 1e-10


@pytest.mark.parametrize('dim,groups', list(itertools.product((1, 2, 3), (1, 2))))
def test_second_derivatives(dim, groups):
    torch.manual_seed(0)
    x = torch.randn(1, 2, *(4, 3, 3)[:dim], dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2 // groups, *(3, 2, 2)[:dim], dtype=torch.float64, requires_grad=True)

    def run(x, w):
        return fft_conv(x, w, padding='same', groups=groups)

    assert torch.autograd.gradcheck(run, (x, w))
    assert torch.autograd.gradgradcheck(run, (x, w))


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('conv', [fft_conv, direct_conv])
def test_dtype_is_kept(conv, dtype):
    tensors, (padding, stride, dilation, groups) = make(((64, ), (33, ), 'causal', 1, 1),
                                                        (4, 4, 4), dtype)
    y = conv(*tensors, stride, padding, dilation, groups)
    assert y.dtype == dtype
    expected = oracle(*(t.double() for t in tensors), padding, stride, dilation, groups)
    assert relative(y, expected) < TOLERANCE[dtype]


def test_an_empty_batch_passes():
    weight = torch.randn(4, 3, 5, requires_grad=True)
    y = fft_conv(torch.zeros(0, 3, 9), weight, padding='same')
    assert y.shape == (0, 4, 9)
    y.sum().backward()
    assert not weight.grad.any()


def test_autocast_keeps_the_transform_in_single_precision():
    x, w = torch.randn(1, 2, 300), torch.randn(2, 1, 201)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = fft_conv(x, w, padding='same', groups=2)
    expected = direct_conv(x.double(), w.double(), padding='same', groups=2)
    assert y.dtype == torch.float32 and relative(y, expected) < 1e-5  # as TOLERANCE[float32]


def test_fast_sizes_are_smallest_smooth_numbers():
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for n in range(1, 700):
        assert fast_fft_size(n) == next(m for m in itertools.count(n) if smooth(m))


@pytest.mark.parametrize('arguments, message', [
    (dict(x=(2, 3)), 'x must be'),
    (dict(w=(4, 3, 3, 3)), 'weight must have 3 axes'),
    (dict(groups=2), 'groups must divide'),
    (dict(w=(4, 1, 3)), r'weight must be \[O, 3'),
    (dict(b=(3, )), 'bias must have shape'),
    (dict(stride=0), 'stride must be an int or 1 ints, at least 1, got 0'),
    (dict(stride=2.), 'stride must be an int or 1 ints, at least 1, got 2.0'),
    (dict(x=(2, 3, 0)), r'axes of x and weight must not be empty, got sizes \(0,\)'),
    (dict(stride=(1, 1)), 'stride must be an int or 1 ints'),
    (dict(padding='full'), "padding must be 'same'"),
    (dict(padding=[(-1, 2)]), 'padding of axis 0 must be an int or 2 ints, at least 0'),
    (dict(w=(4, 3, 12)), 'must fit into the padded input'),
])
@pytest.mark.parametrize('conv', [fft_conv, direct_conv, convolve])
def test_mistakes_are_named(conv, arguments, message):
    shapes = dict(x=(2, 3, 9), w=(4, 3, 3), b=(4, ))
    given = {k: torch.zeros(arguments.get(k, v)) for k, v in shapes.items()}
    rest = {k: v for k, v in arguments.items() if k not in shapes}
    with pytest.raises(ValueError, match=message):
        conv(given['x'], given['w'], given['b'], **rest)


def test_complex_input_is_refused():
    with pytest.raises(TypeError, match='x must be real'):
        fft_conv(torch.zeros(1, 1, 4, dtype=torch.complex64), torch.zeros(1, 1, 3))


@pytest.fixture
def depthwise():
    clear_measurements()
    return torch.randn(1, 2, 40), torch.randn(2, 1, 9)


def chosen(x, w, method=None):
    return choose_method(x, w, conv_geometry(x, w, padding='same', groups=x.shape[1]), method)


def test_choice_is_measured_and_remembered(depthwise):
    x, w = depthwise
    first = chosen(x, w, method='measure')
    assert first.reason == 'measured on these shapes'
    fastest = min(first.fft_seconds, first.direct_seconds)
    assert fastest == (first.fft_seconds if first.method == 'fft' else first.direct_seconds)
    assert chosen(x, w, method='measure') is first


def test_choice_distinguishes_training(depthwise):
    x, w = depthwise
    inference = chosen(x, w, method='measure')
    training = chosen(x, w.requires_grad_(), method='measure')
    assert training is not inference


def test_nothing_is_measured_unless_asked_for(depthwise):
    x, w = depthwise
    for method in (None, 'auto'):
        assert chosen(x, w, method).reason.startswith('predicted by the cost model')
    answer = explain_method(x, w, padding='same', groups=2)
    [other] = {'fft', 'direct'} - {answer['chosen']}
    assert re.fullmatch(r'predicted by the cost model \(the default\): fft .* ms, direct .* ms',
                        answer['refused'][other])


def test_hopeless_ways_are_not_tried():
    clear_measurements()
    # Never computed: this would take minutes.
    x, w = torch.zeros(1, 1, 1).expand(64, 512, 20000), torch.zeros(1, 1, 1).expand(512, 1, 20001)
    choice = chosen(x, w, 'measure')
    assert choice.method == 'fft' and 'too slow to try' in choice.reason


def test_choice_does_not_touch_random_state_or_gradients(depthwise):
    x, w = depthwise
    w.requires_grad_()
    state = torch.get_rng_state()
    convolve(x, w, padding='same', groups=2, method='measure')
    assert torch.equal(state, torch.get_rng_state())
    assert w.grad is None


@pytest.mark.parametrize('forced', ['fft', 'direct'])
def test_environment_forces_a_way(depthwise, monkeypatch, forced):
    monkeypatch.setenv(METHOD_VARIABLE, forced)
    answer = explain_method(*depthwise, padding='same', groups=2)
    [(other, reason)] = answer['refused'].items()
    assert {other, forced} == {'fft', 'direct'} and METHOD_VARIABLE in reason
    assert answer['chosen'] == forced
    # The argument takes precedence over the environment.
    for method in ('auto', 'model'):
        assert chosen(*depthwise, method).reason.startswith('predicted')


def test_unknown_method_is_named(depthwise, monkeypatch):
    with pytest.raises(ValueError, match="argument method must be one of .* got 'dct'"):
        convolve(*depthwise, padding='same', groups=2, method='dct')
    monkeypatch.setenv(METHOD_VARIABLE, 'winograd')
    with pytest.raises(ValueError, match=f"{METHOD_VARIABLE} must be one of .* got 'winograd'"):
        convolve(*depthwise, padding='same', groups=2)


def test_deterministic_mode_predicts(depthwise):
    torch.use_deterministic_algorithms(True)
    try:
        choice = chosen(*depthwise, 'measure')
    finally:
        torch.use_deterministic_algorithms(False)
    assert choice.reason.startswith('predicted by the cost model')


def test_exports_take_the_direct_way(depthwise):
    class Net(torch.nn.Module):

        def forward(self, x):
            return convolve(x, torch.ones(2, 1, 9), padding='same', groups=2)

    traced = torch.jit.trace(Net(), depthwise[0])
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert 'aten::_convolution' in kinds and not any('fft' in kind for kind in kinds)


@COMPILES
def test_compiled_result():
    x, w = torch.randn(1, 2, 50), torch.randn(2, 1, 31)
    compiled = torch.compile(convolve, backend='aot_eager', fullgraph=True)
    # `convolve` may use the FFT, whose error is relative to the largest value.
    assert_close(compiled(x, w, padding='causal', groups=2),
                 direct_conv(x, w, padding='causal', groups=2), rtol=1e-4, atol=1e-4)


def test_meta_tensors_have_the_right_shape():
    x, w = torch.empty(2, 3, 20, 20, device='meta'), torch.empty(4, 3, 5, 5, device='meta')
    assert fft_conv(x, w, padding='same').shape == (2, 4, 20, 20)
    assert convolve(x, w, padding='same').shape == (2, 4, 20, 20)
