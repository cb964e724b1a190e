"""The C++ kernels against the float64 reference, for every available instruction set."""
import itertools

import pytest
import torch
from tolerances import ROUNDED_ONCE, assert_near

from mmcontext.ops import explain, local_aggregation
from mmcontext.ops.local_aggregation.backends import Geometry
from mmcontext.ops.local_aggregation.native import NativeBackend
from mmcontext.ops.local_aggregation.reference import aggregate
from mmcontext.ops.local_aggregation.shift_add import ShiftAddBackend
from mmcontext.ops.native_library import instruction_sets

pytestmark = pytest.mark.skipif(not instruction_sets(), reason='installed without a compiler')
NATIVE = NativeBackend()
TOLERANCE = {**ROUNDED_ONCE, torch.float32: 4e-6}  # sums of up to 49 * 40 terms

# batch, groups, channels per group, height, width, kernel, stride, padding, dilation
CASES = {
    'involution': (2, 2, 16, 14, 14, 7, 1, 3, 1),
    'involution-wide': (1, 1, 16, 5, 130, 7, 1, 3, 1),
    'involution-7x7': (2, 3, 16, 7, 7, 7, 1, 3, 1),
    'involution-3': (2, 3, 16, 9, 10, 3, 1, 1, 1),
    'stride-2': (1, 2, 16, 14, 15, 7, 2, 3, 1),
    'stride-2-kernel-5': (2, 2, 16, 9, 37, 5, 2, 2, 1),
    'stride-2-kernel-3': (1, 1, 16, 11, 23, 3, 2, (0, 1), 1),
    'stride-2-small': (2, 1, 16, 4, 5, 7, 2, 3, 1),
    'stride-2-no-padding': (1, 2, 16, 18, 19, 7, 2, 0, 1),
    'stride-2-wide-padding': (1, 1, 16, 8, 9, 3, 2, (5, 4), 1),
    'cot': (2, 8, 8, 9, 11, 3, 1, 1, 1),
    'cot-16-groups': (1, 16, 8, 6, 7, 3, 1, 1, 1),
    'kernel-5': (1, 2, 8, 10, 21, 5, 1, 2, 1),
    'one-row': (1, 1, 4, 1, 40, 7, 1, 3, 1),
    'one-column': (1, 1, 4, 40, 1, 7, 1, 3, 1),
    'one-pixel': (2, 2, 16, 1, 1, 7, 1, 3, 1),
    'dilation': (1, 2, 6, 12, 13, 3, 1, 2, 2),
    'stride-and-dilation': (1, 3, 2, 13, 17, 3, (2, 3), (1, 4), (3, 2)),
    'even-kernel': (1, 2, 5, 9, 10, (4, 2), 1, (1, 0), 1),
    'padding-beyond-kernel': (1, 1, 3, 5, 6, 3, 1, 4, 1),
    'no-padding': (1, 2, 16, 9, 19, 7, 1, 0, 1),
    'stride-beyond-kernel': (1, 1, 4, 11, 12, 2, 5, 0, 1),
    'many-channels-share': (1, 1, 40, 8, 9, 3, 1, 1, 1),
    'kernel-1': (1, 4, 2, 5, 6, 1, 1, 0, 1),
}


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)


def _operands(case, interleaved, dtype, layout):
    """Geometry, x, w and a gradient of the output."""
    batch, groups, shared, height, width, kernel, *rest = CASES[case]
    geometry = Geometry(_pair(kernel), *map(_pair, rest), interleaved)
    out = geometry.output_size(height, width)
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    generator = torch.Generator().manual_seed(0)

    def tensor(channels, rows, cols):
        value = torch.randn(batch, channels, rows, cols, generator=generator).to(dtype)
        if layout == 'channels-last':
            return value.contiguous(memory_format=torch.channels_last)
        if layout == 'strided':
            apart = torch.full((batch, 2 * channels, rows + 1, 2 * cols + 3), float('nan'),
                               dtype=dtype)
            view = apart[:, ::2, 1:, 3::2]
            return view.copy_(value)
        return value

    x = tensor(groups * shared, height, width)
    w = tensor(groups * taps, *out).unflatten(1, (groups, taps))
    return geometry, x, w, tensor(groups * shared, *out)


def _assert_near(actual, expected, dtype):
    assert actual.dtype == dtype
    assert_near(actual, expected, TOLERANCE[dtype], least=1e-3)


def _check(case, interleaved, dtype, layout):
    geometry, x, w, grad = _operands(case, interleaved, dtype, layout)
    assert NATIVE.refuse(x, w, geometry) is None
    x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
    expected = aggregate(x64, w64, geometry)
    grad_x, grad_w = torch.autograd.grad(expected, (x64, w64), grad.double())
    _assert_near(NATIVE.forward(x, w, geometry), expected, dtype)
    _assert_near(NATIVE.grad_input(grad, w, tuple(x.shape[-2:]), geometry), grad_x, dtype)
    _assert_near(NATIVE.grad_weight(grad, x, w.shape[1], geometry), grad_w, dtype)


@pytest.fixture(params=instruction_sets())
def isa(request, monkeypatch):
    monkeypatch.setenv('MMCONTEXT_CPU_ISA', request.param)
    assert torch.ops.mmcontext_native.instruction_set() == request.param
    return request.param


@pytest.fixture
def nan_filled(monkeypatch):
    """torch's uninitialised memory contains NaN, to reveal values that were never written."""
    if hasattr(torch.utils, 'deterministic'):  # since torch 2.2; before, memory is not filled
        monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('interleaved', [False, True], ids=['block', 'interleaved'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels-last', 'strided'])
@pytest.mark.parametrize('case', CASES)
def test_equals_reference(case, layout, interleaved, isa, nan_filled):
    _check(case, interleaved, torch.float32, layout)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels-last'])
@pytest.mark.parametrize('case', ['involution', 'cot', 'stride-2', 'stride-and-dilation'])
def test_equals_reference_in_other_dtypes(case, layout, dtype, isa, nan_filled):
    for interleaved in (False, True):
        _check(case, interleaved, dtype, layout)


@pytest.mark.parametrize('threads', [1, 2, 3])
def test_thread_count_does_not_change_the_bits(threads, isa):
    before = torch.get_num_threads()
    for case, layout in itertools.product(('involution', 'cot', 'stride-2'),
                                          ('contiguous', 'channels-last')):
        geometry, x, w, grad = _operands(case, case == 'cot', torch.float32, layout)
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            try:
                results.append((NATIVE.forward(x, w, geometry),
                                NATIVE.grad_input(grad, w, tuple(x.shape[-2:]), geometry),
                                NATIVE.grad_weight(grad, x, w.shape[1], geometry)))
            finally:
                torch.set_num_threads(before)
        for one, many in zip(*results):
            assert torch.equal(one, many)


def test_infinite_neighbours_do_not_leak():
    """Lanes beyond an edge read the next row, whose values must not matter."""
    geometry, x, w, grad = _operands('involution', False, torch.float32, 'contiguous')
    expected = NATIVE.forward(x, w, geometry)
    x[:, :, 13] = float('inf')
    assert torch.equal(NATIVE.forward(x, w, geometry)[:, :, :10], expected[:, :, :10])
    wide = torch.full((2, 32, 14, 16), float('nan'))
    wide[..., 1:15] = grad
    inner = wide[..., 1:15]
    assert torch.equal(NATIVE.grad_input(inner, w, (14, 14), geometry),
                       NATIVE.grad_input(grad, w, (14, 14), geometry))


def test_low_precision_rounds_once():
    """Sums are in float32: the result is the float32 one, rounded to nearest even."""
    for dtype in (torch.bfloat16, torch.float16):
        geometry, x, w, _ = _operands('involution', False, dtype, 'contiguous')
        exact = NATIVE.forward(x.float(), w.float(), geometry)
        assert torch.equal(NATIVE.forward(x, w, geometry), exact.to(dtype))


def test_special_values_of_low_precision():
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.tensor([0., -0., 1e-7, -6e-8, 1e-5, 65504., 7e4, float('inf'),
                               float('-inf'), float('nan'), 1.0009765, 1 / 3] * 2).to(dtype)
        x = values.view(1, 1, 4, 6)
        y = local_aggregation(x, torch.ones(1, 1, 1, 4, 6, dtype=dtype), 1, backend='native')
        assert torch.equal(y.nan_to_num(7.), x.nan_to_num(7.))
        assert torch.equal(y.isnan(), x.isnan())


def test_channels_last_stays(isa):
    geometry, x, w, grad = _operands('involution', False, torch.float32, 'channels-last')
    assert NATIVE.forward(x, w, geometry).is_contiguous(memory_format=torch.channels_last)
    assert NATIVE.grad_input(grad, w, (14, 14), geometry).is_contiguous(
        memory_format=torch.channels_last)
    assert NATIVE.grad_weight(grad, x, 2, geometry).flatten(1, 2).is_contiguous(
        memory_format=torch.channels_last)


def test_large_outputs():
    """Large enough for huge pages, and not a multiple of their size."""
    x, w = torch.randn(1, 8, 1030, 1040), torch.randn(1, 1, 1, 1030, 1040)
    assert torch.equal(local_aggregation(x, w, 1), x * w[:, 0])


def test_empty_batch():
    y = local_aggregation(torch.ones(0, 16, 8, 8), torch.ones(0, 1, 49, 8, 8), 7, padding=3,
                          backend='native')
    assert y.shape == (0, 16, 8, 8)


@pytest.mark.parametrize('share', ['block', 'interleaved'])
def test_gradients_of_both_orders(share):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
            for shape in ((1, 4, 5, 4), (1, 2, 9, 3, 2)))

    def function(x, w):
        return local_aggregation(x, w, 3, stride=2, padding=1, share=share, backend='native')

    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w))


def test_only_wanted_gradients_are_computed():
    x, w = torch.randn(1, 16, 8, 8), torch.randn(1, 1, 9, 8, 8, requires_grad=True)
    y = local_aggregation(x, w, 3, padding=1, backend='native')
    y.sum().backward()
    assert x.grad is None and w.grad.shape == w.shape


def test_it_is_chosen_on_cpu_and_never_replaced_silently(monkeypatch):
    x, w = torch.randn(1, 16, 8, 8), torch.randn(1, 1, 9, 8, 8)
    assert explain(x, w, 3, padding=1)['chosen'] == 'native'
    called = []
    monkeypatch.setattr(ShiftAddBackend, 'forward',
                        lambda self, x, w, geometry: called.append(1) or torch.zeros_like(x))
    local_aggregation(x, w, 3, padding=1)
    assert not called
    local_aggregation(x, w, 3, padding=1, backend='torch')
    assert called


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv('MMCONTEXT_CPU_ISA', 'mmx')
    with pytest.raises(RuntimeError, match="MMCONTEXT_CPU_ISA is 'mmx', expected one of"):
        local_aggregation(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 3, 3), 1, backend='native')
