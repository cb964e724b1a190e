"""The direct kernels of narrow groups, emulated on the CPU, against float64."""
import pytest
import torch
import torch.nn.functional as F

from mmcontext.ops import grouped_conv2d
from mmcontext.ops.native_library import UNAVAILABLE

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')
HALF, BF16 = torch.float16, torch.bfloat16
# Largest error over the largest value: of one rounding of the result.
TOLERANCE = {HALF: 1e-3, BF16: 8e-3}


def inside(values, dtype):
    """A channels-last map whose neighbours in memory are NaN."""
    batch, channels, rows, cols = values.shape
    around = torch.full((batch + 2, rows, cols, channels + 16), float('nan'), dtype=dtype)
    around[1:-1, ..., 8:-8] = values.permute(0, 2, 3, 1)
    return around[1:-1, ..., 8:-8].permute(0, 3, 1, 2)


def check(dtype, size, outputs, kernel, groups, stride=1, bias=False, last=False):
    torch.manual_seed(0)
    x = torch.randn(size).to(dtype)
    w = torch.randn(outputs, size[1] // groups, kernel, kernel).to(dtype)
    operands = [x, w] + [torch.randn(outputs).to(dtype)] * bias
    exact = [t.double().requires_grad_() for t in operands]
    expected = F.conv2d(exact[0], exact[1], exact[2] if bias else None, stride, kernel // 2, 1,
                        groups)
    cotangent = torch.randn(expected.shape).to(dtype)
    wanted = [expected, *torch.autograd.grad(expected, exact, cotangent.double())]
    if last:
        operands[1] = w.contiguous(memory_format=torch.channels_last)
    operands[0] = inside(x, dtype)
    operands = [t.requires_grad_() for t in operands]
    y = grouped_conv2d(operands[0], operands[1], operands[2] if bias else None, stride,
                       kernel // 2, 1, groups, method='null')
    actual = [y, *torch.autograd.grad(y, operands, inside(cotangent, dtype))]
    assert y.is_contiguous(memory_format=torch.channels_last)
    for name, a, e in zip(('y', 'x', 'w', 'bias'), actual, wanted):
        error = (a.double() - e).abs().max() / e.abs().max()
        assert error <= TOLERANCE[dtype], f'{name}: {error:.1e}'


@pytest.mark.parametrize('case', [
    (BF16, (2, 64, 17, 19), 16, 9, 16), (HALF, (1, 32, 12, 14), 8, 5, 8, 2),
    (BF16, (1, 64, 9, 10), 16, 7, 8), (BF16, (2, 32, 16, 13), 8, 7, 4, 2, True),
    (HALF, (3, 64, 7, 7), 16, 5, 4, 1, True, True), (BF16, (1, 32, 10, 9), 16, 7, 2),
    (BF16, (2, 24, 8, 8), 24, 3, 2), (HALF, (1, 64, 7, 5), 64, 3, 2, 1, False, True)], ids=str)
def test_kernels_equal_float64(emulated, case):
    check(*case)
    assert [entry for _, _, entry in emulated] == ['grouped_map', 'grouped_map',
                                                   'grouped_weight', 'grouped_sum']
