"""The C++ convolution of channels-last maps: against float64, and when it is left alone."""
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmcontext.layers import conv_norm
from mmcontext.layers.conv_norm import FusedSequential, fused
from mmcontext.ops.native_library import instruction_sets

pytestmark = pytest.mark.skipif(not instruction_sets(), reason='installed without a compiler')
ACTIVATIONS = {'none': nn.Identity(), 'relu': nn.ReLU(), 'silu': nn.SiLU()}


def _by_pixel(x):
    return x.contiguous(memory_format=torch.channels_last)


def _call(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
          norm=(None,) * 4, eps=0., residual=None, activation='none'):
    return torch.ops.mmcontext_native.conv_norm_act(x, weight, bias, stride, padding, dilation,
                                                    groups, *norm, eps, residual, activation)


def _norm(channels):
    norm = nn.BatchNorm2d(channels).eval()
    for tensor in itertools.chain(norm.parameters(), (norm.running_mean, norm.running_var)):
        tensor.detach().uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize('seed', range(40))
@pytest.mark.parametrize('isa', instruction_sets())
def test_equals_float64(isa, seed, monkeypatch):
    """Random geometries; 5e-6 of the largest value."""
    monkeypatch.setenv('MMCONTEXT_CPU_ISA', isa)
    torch.manual_seed(seed)
    choose = random.Random(seed).choice
    groups, depth = choose([1, 1, 2, 4]), choose([1, 3, 16, 17, 40])
    outputs = choose([5, 16, 72, 130])
    kernel, stride = (choose([1, 1, 3, 5]), choose([1, 2, 3])), (choose([1, 2]), choose([1, 3]))
    padding, dilation = (choose([0, 1, 3]), choose([0, 2])), (choose([1, 2]), choose([1, 3]))
    x = _by_pixel(torch.randn(choose([1, 3]), groups * depth, choose([9, 15]), choose([9, 26])))
    weight = torch.randn(groups * outputs, depth, *kernel)
    if seed % 2:
        weight = _by_pixel(weight)
    bias, norm = torch.randn(groups * outputs), _norm(groups * outputs)
    geometry = stride, padding, dilation, groups
    expected = norm.double()(F.conv2d(x.double(), weight.double(), bias.double(), *geometry))
    norm.float()
    residual = _by_pixel(torch.randn(expected.shape))
    activation = choose(list(ACTIVATIONS))
    expected = ACTIVATIONS[activation](expected + residual.double())
    with torch.no_grad():
        actual = _call(x, weight, bias, *geometry,
                       (norm.running_mean, norm.running_var, norm.weight, norm.bias), norm.eps,
                       residual, activation)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual.double(), expected, rtol=0,
                               atol=5e-6 * expected.abs().max().item())


def test_many_pixels_are_divided_among_threads():
    """Pixels that do not divide evenly, and more threads than the machine has cores."""
    x, weight = _by_pixel(torch.randn(2, 24, 37, 41)), torch.randn(80, 24, 1, 1)
    expected = F.conv2d(x.double(), weight.double())
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 5):
            torch.set_num_threads(threads)
            torch.testing.assert_close(_call(x, weight).double(), expected, rtol=0, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_empty_batch():
    x = torch.empty(0, 16, 5, 5, memory_format=torch.channels_last)
    assert _call(x, torch.randn(8, 16, 3, 3)).shape == (0, 8, 3, 3)


@pytest.mark.parametrize('changes, message', [
    (dict(x=torch.randn(1, 16, 5, 5)), 'x must be'),
    (dict(x=_by_pixel(torch.randn(1, 16, 5, 5).double())), 'x must be'),
    (dict(weight=torch.randn(8, 16, 3, 3).double()), 'weight must be'),
    (dict(weight=torch.randn(8, 15, 3, 3)), 'do not go with'),
    (dict(groups=3), 'do not go with'),
    (dict(stride=(0, 1)), 'stride must be'),
    (dict(padding=(0, -1)), 'padding must be'),
    (dict(dilation=(4, 1)), 'does not fit'),
    (dict(bias=torch.randn(9)), 'bias must be'),
    (dict(norm=(torch.randn(8), None, None, None)), 'mean and variance'),
    (dict(residual=_by_pixel(torch.randn(1, 8, 5, 5))), 'residual must be'),
    (dict(activation='gelu'), 'activation must be'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_bad_arguments(changes, message):
    arguments = dict(x=_by_pixel(torch.randn(1, 16, 5, 5)), weight=torch.randn(8, 16, 3, 3))
    with pytest.raises(RuntimeError, match=message):
        _call(**{**arguments, **changes})


@pytest.fixture
def passes(monkeypatch):
    """What one pass took in each call: convolution, norm, activation, residual."""
    taken, original = [], conv_norm._conv_norm_act

    def spy(x, conv, norm, act, residual):
        taken.append(''.join(letter for letter, part in zip('cnar', (conv, norm, act, residual))
                             if part is not None))
        return original(x, conv, norm, act, residual)

    monkeypatch.setattr(conv_norm, '_conv_norm_act', spy)
    monkeypatch.setattr(conv_norm, '_CONVOLVES', True)
    return taken


def _conv(outputs=32, **options):
    return nn.Conv2d(16, outputs, 3, **{'padding': 1, **options})


@pytest.mark.parametrize('modules, residual, expected', [
    ((_conv(), _norm(32), nn.ReLU()), False, ['cna']),
    ((_conv(), _norm(32), nn.ReLU()), True, ['cnar']),
    ((_conv(), _norm(32), nn.GELU()), True, ['cn']),
    ((_conv(), _norm(32), nn.SiLU(), nn.Identity()), True, ['cna']),
    ((_conv(), nn.Identity(), nn.ReLU()), True, ['car']),
    ((_conv(), nn.Identity(), _norm(32), nn.Identity()), True, ['cnar']),
    ((_conv(), nn.GroupNorm(4, 32), nn.ReLU()), False, ['c']),
    ((_conv(), nn.BatchNorm2d(32), nn.ReLU()), False, ['c']),
    ((_conv(), nn.InstanceNorm2d(32), nn.ReLU()), True, ['c']),
    ((_conv(), nn.Dropout(0.), _norm(32), nn.ReLU()), False, ['c']),
    ((_conv(stride=2), nn.ReLU(), nn.Conv2d(32, 24, 1), _norm(24), nn.ReLU()), False,
     ['ca', 'cna']),
    ((_conv(padding_mode='reflect'), _norm(32), nn.ReLU()), True, []),
    ((_conv(padding='same'), _norm(32), nn.ReLU()), True, []),
    ((_conv(outputs=8), _norm(8), nn.ReLU()), True, []),
    ((_conv(groups=4), _norm(32), nn.ReLU()), True, []),
], ids=str)
def test_what_is_taken_together(modules, residual, expected, passes):
    torch.manual_seed(0)
    x = _by_pixel(torch.randn(2, 16, 9, 8))
    layers = list(modules)
    other = torch.randn_like(nn.Sequential(*layers)(x)) if residual else None
    reference = nn.Sequential(*layers[:-1])(x)
    reference = layers[-1](reference if other is None else reference + other)
    with torch.no_grad():
        actual = fused(x, *layers, residual=other)
    assert passes == expected
    torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-5)


def test_a_residual_of_another_layout_is_added_all_the_same(passes):
    modules = _conv(), _norm(32), nn.ReLU()
    x, other = _by_pixel(torch.randn(2, 16, 9, 8)), torch.randn(2, 32, 9, 8)
    with torch.no_grad():
        for residual in (other, other[:, :, :1, :1], other.double()):
            expected = (modules[1](modules[0](x)) + residual).relu()
            actual = fused(x, *modules, residual=residual)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert passes == ['cn'] * 3


@pytest.mark.parametrize('place, expected', [(0, []), (1, ['c']), (2, ['cn'])])
def test_hooked_modules_run_themselves(place, expected, passes):
    block, seen = FusedSequential(_conv(), _norm(32), nn.ReLU()), []
    block[place].register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    x = _by_pixel(torch.randn(2, 16, 9, 8))
    reference = block(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
    assert passes == expected


def test_changed_weights_count(passes):
    """Nothing is kept from one call to the next, whatever way the weights are written."""
    block, x = FusedSequential(_conv(), _norm(32)), _by_pixel(torch.randn(1, 16, 6, 6))
    with torch.no_grad():
        block(x)
        block[0].weight.data.mul_(-2)
        block[1].running_mean.data.add_(1)
        torch.testing.assert_close(block(x), block[1](block[0](x)), rtol=1e-4, atol=1e-5)
    assert passes == ['cn', 'cn']


def test_autocast_keeps_its_dtype(passes):
    block, x = FusedSequential(_conv(), _norm(32), nn.ReLU()), _by_pixel(torch.randn(1, 16, 6, 6))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert block(x).dtype is torch.bfloat16
    assert passes == []


def test_flops_are_counted():
    block, x = FusedSequential(_conv(), _norm(32), nn.ReLU()), _by_pixel(torch.randn(1, 16, 6, 6))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        block(x)
    assert counter.get_total_flops() == 2 * 36 * 32 * 16 * 9
