"""The fused involution against its definition: a 1x1 convolution, then the aggregation."""
import pytest
import torch
import torch.nn.functional as F
from common import since_torch
from tolerances import DOUBLE_LAYERS, assert_close, assert_near
from torch import Tensor

from mmcontext.ops import fused_involution, standard_operators
from mmcontext.ops.local_aggregation import chunks
from mmcontext.ops.local_aggregation.backends import Geometry
from mmcontext.ops.local_aggregation.reference import aggregate

# (kernel_size, stride, padding, dilation)
GEOMETRIES = {
    'k3': (3, 1, 1, 1),
    'k7_stride2': (7, 2, 3, 1),
    'dilated': (3, 1, 2, 2),
    'rectangular': ((2, 5), (2, 1), (0, 2), (1, 2)),
    'padding_over_kernel': (1, 3, 4, 1),
}
# In bytes: everything at once; some groups of an image; single rows; all groups of some rows.
LIMITS = (1 << 30, 6000, 1)
NAMES = ('x', 'r', 'weight', 'bias', 'scale')


def _pair(value) -> tuple:
    return value if isinstance(value, tuple) else (value, value)


def _operands(sizes: tuple, dtype: torch.dtype = torch.float64, channels_last: bool = False,
              optional: bool = True) -> tuple:
    geometry = Geometry(*(_pair(size) for size in sizes), False)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = random(3, 8, 9, 8).contiguous(memory_format=layout)
    r = random(3, 5, *geometry.output_size(9, 8)).contiguous(memory_format=layout)
    bias, scale = (random(4 * taps), random(3, 8)) if optional else (None, None)
    return geometry, (x, r, random(4 * taps, 5), bias, scale)


def _definition(geometry: Geometry, x: Tensor, r: Tensor, weight: Tensor, bias, scale) -> Tensor:
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    kernels = F.conv2d(r, weight[:, :, None, None], bias).unflatten(1, (-1, taps))
    return aggregate(x if scale is None else x * scale[:, :, None, None], kernels, geometry)


def _fused(geometry: Geometry, x, r, weight, bias, scale) -> Tensor:
    return fused_involution(x, r, weight, bias, *geometry[:4], scale=scale)


def _with_gradients(function, geometry: Geometry, operands: tuple) -> dict:
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in operands]
    output = function(geometry, *leaves)
    present = [(name, leaf) for name, leaf in zip(NAMES, leaves) if leaf is not None]
    cotangent = torch.cos(torch.arange(output.numel(), dtype=torch.float64))
    grads = torch.autograd.grad(output, [leaf for _, leaf in present],
                                cotangent.view(output.shape).to(output.dtype))
    return {'y': output.detach(), **{name: g for (name, _), g in zip(present, grads)}}


@pytest.fixture(params=LIMITS)
def limit(request, monkeypatch) -> int:
    monkeypatch.setitem(chunks._CHUNK_BYTES, 'cpu', request.param)
    return request.param


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('sizes', GEOMETRIES.values(), ids=GEOMETRIES)
def test_equals_unfused_in_float64(sizes, channels_last, limit):
    geometry, operands = _operands(sizes, channels_last=channels_last)
    actual = _with_gradients(_fused, geometry, operands)
    # float64; gradients are summed chunk by chunk.
    assert_near(actual, _with_gradients(_definition, geometry, operands), 1e-10)
    if channels_last:
        assert actual['y'].is_contiguous(memory_format=torch.channels_last)
        assert actual['x'].is_contiguous(memory_format=torch.channels_last)


def test_bias_and_scale_may_be_absent(limit):
    geometry, operands = _operands(GEOMETRIES['k3'], optional=False)
    assert_near(_with_gradients(_fused, geometry, operands),
                _with_gradients(_definition, geometry, operands), 1e-10)  # float64, as above


@pytest.mark.parametrize('dtype, tolerance', [
    # Relative to the largest value: kernels, products and sums are rounded one after another.
    (torch.float32, 1e-5), (torch.bfloat16, 2e-2),
    pytest.param(torch.float16, 2e-3, marks=since_torch('2.2', 'float16 products on a CPU'))])
@pytest.mark.parametrize('channels_last', [False, True])
def test_low_precision(dtype, tolerance, channels_last, limit):
    geometry, operands = _operands(GEOMETRIES['k3'], dtype, channels_last)
    actual = _with_gradients(_fused, geometry, operands)
    exact = [t.double() for t in operands]
    assert_near(actual, _with_gradients(_definition, geometry, exact), tolerance)
    assert {value.dtype for value in actual.values()} == {dtype}


def test_chunks_cover_the_kernels_once_within_the_limit():
    for pixel_major in (False, True):
        for batch, groups, height, row_bytes, limit in ((2, 3, 5, 4, 10**9), (5, 3, 5, 4, 130),
                                                        (2, 3, 5, 4, 45), (2, 3, 5, 4, 9)):
            seen = torch.zeros(batch, groups, height, dtype=torch.int64)
            for chunk in chunks._chunks(batch, groups, height, row_bytes, limit, pixel_major):
                part = seen[chunk.images, chunk.groups, chunk.rows]
                assert 0 < part.numel() * row_bytes <= max(
                    limit, row_bytes * (groups if pixel_major else 1))
                part += 1
            assert torch.all(seen == 1)


def test_gradient_of_one_operand_alone():
    geometry, operands = _operands(GEOMETRIES['k3'])
    x, *others = operands
    x = x.requires_grad_()
    _fused(geometry, x, *others).sum().backward()
    expected, = torch.autograd.grad(_definition(geometry, x, *others).sum(), x)
    assert_close(x.grad, expected, DOUBLE_LAYERS)


def test_second_derivative_when_r_and_scale_come_from_x():
    geometry, (x, _, weight, bias, _) = _operands(GEOMETRIES['k3'])
    mix = torch.linspace(-1, 1, 40, dtype=torch.float64).view(5, 8, 1, 1)

    def curvature(function) -> Tensor:
        leaf = x.clone().requires_grad_()
        y = function(geometry, leaf, torch.tanh(F.conv2d(leaf, mix)), weight, bias,
                     leaf.mean(dim=(2, 3)))
        slope, = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), leaf)[0]

    expected = curvature(_definition)
    # float64, second derivatives.
    assert ((curvature(_fused) - expected).abs().max() / expected.abs().max()) < 1e-10


def test_gradcheck(monkeypatch):
    monkeypatch.setitem(chunks._CHUNK_BYTES, 'cpu', 700)
    geometry, operands = _operands(GEOMETRIES['k3'])
    operands = [t.requires_grad_() for t in operands]
    assert torch.autograd.gradcheck(lambda *t: _fused(geometry, *t), operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: _fused(geometry, *t), operands,
                                        fast_mode=True)


@since_torch('2.4', 'opcheck')
@pytest.mark.parametrize('channels_last', [False, True])
def test_opcheck(channels_last):
    _, operands = _operands(GEOMETRIES['k3'], channels_last=channels_last)
    options = ([3, 3], [1, 1], [1, 1], [1, 1], '')
    leaves = [t.detach().requires_grad_() for t in operands]
    torch.library.opcheck(torch.ops.mmcontext.fused_involution, (*leaves, *options))
    # The gradient of the gradient consists of other operators, never of this one.
    grad = torch.randn_like(operands[0])
    torch.library.opcheck(torch.ops.mmcontext.fused_involution_backward,
                          (grad, *operands, *options),
                          test_utils=('test_schema', 'test_faketensor'))


def test_nothing_of_the_size_of_the_kernels_is_saved():
    geometry, operands = _operands(GEOMETRIES['k7_stride2'])
    leaves = [t.detach().requires_grad_() for t in operands]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _fused(geometry, *leaves)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in leaves}


def test_autocast():
    geometry, operands = _operands(GEOMETRIES['k3'], torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        y = _fused(geometry, *operands)
    assert y.dtype == torch.bfloat16
    # bfloat16 rounds the operands, the kernels and the result.
    assert_near({'y': y}, {'y': _definition(geometry, *[t.double() for t in operands])}, 2e-2)


def test_standard_operators_run_unfused():
    geometry, operands = _operands(GEOMETRIES['k3'])
    with standard_operators():
        graph = torch.jit.trace(lambda *t: _fused(geometry, *t), operands).inlined_graph
    assert 'aten::' in str(graph) and 'mmcontext::' not in str(graph)


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_forced_backend(backend, monkeypatch):
    geometry, operands = _operands(GEOMETRIES['k3'])
    expected = _with_gradients(_definition, geometry, operands)
    monkeypatch.setenv('MMCONTEXT_BACKEND', backend)
    # float64; gradients are summed chunk by chunk.
    assert_near(_with_gradients(_fused, geometry, operands), expected, 1e-10)


def test_forced_backend_that_refuses_raises(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    geometry, operands = _operands(GEOMETRIES['k3'])
    monkeypatch.setenv('MMCONTEXT_BACKEND', 'triton')
    with pytest.raises(RuntimeError, match='need a CUDA device'):
        _fused(geometry, *operands)


@pytest.mark.parametrize('change, error, message', [
    ({'x': torch.zeros(3, 8, 9)}, ValueError, r'x must be \[B, C, H, W\]'),
    ({'x': torch.zeros(3, 7, 9, 8)}, ValueError, '7 channels of x are not divisible by the 4'),
    ({'x': torch.zeros(3, 8, 9, 8, dtype=torch.int64)}, TypeError, 'floating-point'),
    ({'r': torch.zeros(3, 5, 9, 7)}, ValueError, 'r must have the batch, height and width'),
    ({'weight': torch.zeros(35, 5)}, ValueError, r'weight must be \[G \* 9, 5\]'),
    ({'bias': torch.zeros(35)}, ValueError, r'bias must have shape \(36,\)'),
    ({'scale': torch.zeros(3, 4)}, ValueError, r'scale must have shape \(3, 8\)'),
    ({'r': torch.zeros(3, 5, 9, 8).half()}, TypeError, 'r must have the dtype torch.float32'),
    ({'padding': -1}, ValueError, 'padding must be'),
    ({'kernel_size': 20}, ValueError, 'larger than the padded input'),
])
def test_bad_arguments(change, error, message):
    _, operands = _operands(GEOMETRIES['k3'], torch.float32)
    arguments = {**dict(zip(NAMES, operands)), 'kernel_size': 3, 'padding': 1, **change}
    with pytest.raises(error, match=message):
        fused_involution(**arguments)
