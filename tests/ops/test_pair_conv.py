"""The 1x1 convolution of two maps, and aggregations of parts, without copying the maps."""
import pytest
import torch
from tolerances import ROUNDED_ONCE, SINGLE, assert_close, assert_near

from mmcontext.ops.local_aggregation import local_aggregation
from mmcontext.ops.local_aggregation.in_parts import aggregate_in_parts
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.pair_conv import METHOD_VARIABLE, explain_pair_conv, pair_conv

needs_library = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')


def _map(*size, dtype=torch.float32):
    return torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)


@needs_library
# The sum of two products is rounded after each of them.
@pytest.mark.parametrize('dtype, share', [
    (torch.float32, ROUNDED_ONCE[torch.float32]), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize('groups', [1, 2])
def test_products_against_float64(dtype, share, groups):
    operands = [_map(2, 16, 5, 3, dtype=dtype), _map(2, 16, 5, 3, dtype=dtype),
                torch.randn(12, 32 // groups, 1, 1)]
    grad, found = _map(2, 12, 5, 3, dtype=dtype), []
    for method, kind in (('null', None), ('torch', torch.float64)):
        leaves = [t.detach().to(kind or t.dtype).requires_grad_() for t in operands]
        y = pair_conv(*leaves, groups, method)
        found.append([y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))])
    assert [t.dtype for t in found[0]] == [dtype] * 3 + [torch.float32]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in found[0][:3])
    assert_near(*found, share)


@needs_library
@pytest.mark.parametrize('groups', [1, 2])
def test_derivatives_of_products(groups):
    seconds = []
    operands = _map(1, 4, 2, 3), _map(1, 4, 2, 3), torch.randn(6, 8 // groups, 1, 1)
    for method, kind in (('null', torch.float32), ('torch', torch.float64)):
        leaves = [t.detach().to(kind).requires_grad_() for t in operands]
        firsts = torch.autograd.grad(pair_conv(*leaves, groups, method).square().sum(), leaves,
                                     create_graph=True)
        seconds.append(torch.autograd.grad(sum(t.square().sum() for t in firsts), leaves))
    for a, e in zip(*seconds):
        # Second derivatives in float32: small ones are differences.
        assert_close(a.double(), e, rtol=1e-4, atol=1e-3)


@needs_library
def test_refusals_and_wrong_arguments(monkeypatch):
    x = torch.randn(1, 4, 3, 3)
    assert 'on a GPU' in explain_pair_conv(x, x)['refused']['cuda']
    last = x.contiguous(memory_format=torch.channels_last)
    assert explain_pair_conv(last, last, 'null') == {'chosen': 'null', 'refused': {}}
    assert 'differs from x' in explain_pair_conv(last, x, 'null')['refused']['cuda']
    with pytest.raises(ValueError, match='in 2 groups has the shape'):
        pair_conv(last, last, torch.ones(4, 8, 1, 1), 2, 'null')
    with pytest.raises(RuntimeError, match="'cuda' of pair_conv does not .*: .*GPU"):
        pair_conv(x, x, torch.ones(4, 8, 1, 1), method='cuda')
    monkeypatch.setenv(METHOD_VARIABLE, 'triton')
    with pytest.raises(ValueError, match=f"{METHOD_VARIABLE} must be .*'triton'"):
        explain_pair_conv(x, x)


@needs_library
def test_parts_are_aggregated_where_they_lie(emulated):
    geometry = dict(kernel_size=3, padding=1, share='interleaved')
    x, w, grad = _map(2, 48, 5, 6), torch.randn(2, 6, 9, 5, 6), _map(2, 48, 5, 6)
    found = []
    for backend, kind in (('null', torch.float32), ('reference', torch.float64)):
        a, b = (t.detach().to(kind).requires_grad_() for t in (x, w))
        y = aggregate_in_parts(a, b, 2, **geometry, backend=backend)
        found.append([y, *torch.autograd.grad(y, (a, b), grad.to(kind))])
    for a, e in zip(*found):
        assert_close(a.double(), e, SINGLE)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in found[0][:2])
    assert [source for source, *_ in emulated] == ['local_aggregation.cu'] * 6
    halves = [local_aggregation(a, b, **geometry) for a, b in zip(x.chunk(2, 1), w.chunk(2, 1))]
    assert_close(aggregate_in_parts(x, w, 2, **geometry), torch.cat(halves, 1))
    with pytest.raises(ValueError, match='in 2 parts'):
        aggregate_in_parts(x, torch.randn(2, 3, 9, 5, 6), 2, **geometry, backend='null')


@needs_library
def test_derivatives_of_parts(emulated):
    x, w, seconds = _map(1, 16, 3, 2), torch.randn(1, 2, 9, 3, 2), []
    for backend, kind in (('null', torch.float32), ('reference', torch.float64)):
        a, b = (t.detach().to(kind).requires_grad_() for t in (x, w))
        y = aggregate_in_parts(a, b, 2, 3, padding=1, backend=backend)
        firsts = torch.autograd.grad(y.square().sum(), (a, b), create_graph=True)
        seconds.append(torch.autograd.grad(sum(t.square().sum() for t in firsts), (a, b)))
    for a, e in zip(*seconds):
        # Second derivatives in float32: small ones are differences.
        assert_close(a.double(), e, rtol=1e-4, atol=1e-3)
