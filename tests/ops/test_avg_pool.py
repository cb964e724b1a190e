"""Average pooling with the CUDA kernels, emulated on the CPU."""
import pytest
import torch
import torch.nn.functional as F
from tolerances import ROUNDED_ONCE, assert_close, assert_near

from mmcontext.ops.avg_pool import METHOD_VARIABLE, avg_pool2d, explain_avg_pool
from mmcontext.ops.layout import lies_by_pixel
from mmcontext.ops.native_library import UNAVAILABLE

needs_library = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Kernel, stride, padding, ceil_mode, whether the padding counts.
POOLS = [(3, 2, 1, False, True), (2, 2, 0, True, True), (2, 2, 0, True, False),
         ((3, 2), (2, 3), (1, 0), True, False), (3, 2, 1, True, True), (2, 3, 1, False, True)]


def _map(*size, dtype=torch.float32):
    return torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)


@needs_library
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('pool', POOLS, ids=str)
def test_kernels_against_float64(emulated, dtype, pool):
    for size in ((7, 9), (6, 4)):
        x = _map(2, 24, *size, dtype=dtype).requires_grad_()
        y = avg_pool2d(x, *pool, method='null')
        wide = x.detach().double().requires_grad_()
        expected = F.avg_pool2d(wide, *pool)
        grad = _map(*expected.shape, dtype=dtype)
        actual = [y, *torch.autograd.grad(y, x, grad)]
        wanted = [expected, *torch.autograd.grad(expected, wide, grad.double())]
        assert all(lies_by_pixel(a) for a in actual)
        assert_near(actual, wanted, ROUNDED_ONCE[dtype] / 2)
    assert len(emulated) == 4


@needs_library
def test_gradients_of_gradients_and_other_gradients_than_maps(emulated):
    x = _map(1, 4, 5, 5).requires_grad_()
    y = avg_pool2d(x, 3, 2, 1, method='null')
    first, = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), x)
    other = F.avg_pool2d(x, 3, 2, 1)
    expected, = torch.autograd.grad(other.square().sum(), x, create_graph=True)
    assert_close(first, expected)
    assert_close(second, torch.autograd.grad(expected.square().sum(), x)[0])
    spread, = torch.autograd.grad(avg_pool2d(x, 3, 2, 1, method='null').sum(), x)
    assert_close(spread, torch.autograd.grad(F.avg_pool2d(x, 3, 2, 1).sum(), x)[0])


@needs_library
def test_refusals_and_wrong_arguments(monkeypatch):
    x = torch.randn(1, 8, 5, 5)
    assert explain_avg_pool(x, 2) == {
        'chosen': 'torch', 'refused': {'cuda': 'the CUDA kernels run on a GPU, x is on cpu'}}
    assert_close(avg_pool2d(x, 2), F.avg_pool2d(x, 2))
    last = x.contiguous(memory_format=torch.channels_last)
    assert explain_avg_pool(last, 3, 2, 1, method='null') == {'chosen': 'null', 'refused': {}}
    for reason, arguments in (('9 pixels', (last, 4)), ('channels-last', (x, 2)),
                              ('window is invalid', (last, 2, 2, 2)),
                              ('float16', (last.double(), 2))):
        assert reason in explain_avg_pool(*arguments, method='null')['refused']['cuda']
    with pytest.raises(RuntimeError, match='pad should be'):
        monkeypatch.setenv(METHOD_VARIABLE, 'null')
        avg_pool2d(last, 2, 2, 2)
    with pytest.raises(RuntimeError, match="'cuda' of avg_pool2d does not .*: .*GPU"):
        avg_pool2d(x, 2, method='cuda')
    monkeypatch.setenv(METHOD_VARIABLE, 'triton')
    with pytest.raises(ValueError, match=f"{METHOD_VARIABLE} must be .*'triton'"):
        explain_avg_pool(x, 2)
