"""Kernels computed by rows: the compiled function against the convolution."""
import pytest
import torch
import torch.nn.functional as F
from tolerances import DOUBLE, assert_close

from mmcontext.ops.local_aggregation import by_rows
from mmcontext.ops.native_library import UNAVAILABLE


def operands(dtype):
    r = torch.randn(2, 4, 3, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in (r, torch.randn(6, 4, 1, 1, dtype=dtype),
                                         torch.randn(6, dtype=dtype))]


@pytest.mark.parametrize('compiled', [
    pytest.param(True, marks=pytest.mark.skipif(bool(UNAVAILABLE), reason='no compiler')), False])
def test_equals_the_convolution_with_all_derivatives(monkeypatch, compiled):
    monkeypatch.setattr(by_rows, 'UNAVAILABLE', '' if compiled else 'left out')
    inputs = operands(torch.float64)
    w, expected = by_rows.span_by_rows(*inputs), F.conv2d(*inputs)
    assert w.is_contiguous()
    assert_close(w, expected, DOUBLE)
    cotangent = torch.randn_like(w)
    gradients = torch.autograd.grad(w, inputs, cotangent)
    for a, e in zip(gradients, torch.autograd.grad(expected, inputs, cotangent)):
        assert_close(a, e, DOUBLE)
    assert torch.autograd.gradgradcheck(by_rows.span_by_rows, inputs)
    if compiled:
        assert gradients[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(bool(UNAVAILABLE), reason='no compiler')
def test_half_precision_and_wrong_sizes():
    r, weight, bias = operands(torch.float32)
    w = by_rows.span_by_rows(r.bfloat16(), weight, bias)
    assert w.dtype == torch.bfloat16
    # bfloat16 rounds r, the weight, eight shares of the bias, and the result.
    assert_close(w.float(), F.conv2d(r, weight, bias), rtol=3e-2, atol=3e-2)
    w.float().square().sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    with pytest.raises(ValueError, match='do not fit'):
        by_rows.span_by_rows(r, weight, bias[:5])
