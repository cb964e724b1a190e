"""Group norm with the CUDA kernels, emulated on the CPU."""
import pytest
import torch
import torch.nn.functional as F
from tolerances import ROUNDED_ONCE, assert_close, assert_near

from mmcontext.ops.group_norm import METHOD_VARIABLE, explain_group_norm, group_norm
from mmcontext.ops.native_library import UNAVAILABLE

needs_library = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')


def _operands(dtype, shape):
    # A mean far from zero must not cost precision.
    x = torch.randn(shape) + 4 * torch.randn(shape[1])[:, None, None]
    return [x.to(dtype), torch.rand(shape[1]) + 0.5, torch.randn(shape[1])], torch.randn(
        shape).to(dtype)


def _run(operands, grad, groups, method, kind=None, create_graph=False):
    """Output and gradients."""
    leaves = [t.to(kind or t.dtype).requires_grad_() for t in operands]
    y = group_norm(leaves[0], groups, *leaves[1:], eps=1e-3, method=method)
    return [y, *torch.autograd.grad(y, leaves, grad.to(y.dtype), create_graph=create_graph)], leaves


@needs_library
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernels_against_float64(emulated, dtype):
    # Vectors and single elements, more channels in a group than are added up side by side.
    for shape, groups in (((2, 18, 4, 6), 2), ((3, 18, 7, 7), 2), ((2, 98, 2, 4), 2),
                          ((1, 4, 33, 40), 1)):
        operands, grad = _operands(dtype, shape)
        actual, _ = _run(operands, grad, groups, 'null')
        expected, leaves = _run(operands, grad, groups, 'torch', torch.float64)
        assert_near(actual, expected, ROUNDED_ONCE[dtype], least=1)
        assert_close(expected[0], F.group_norm(leaves[0], groups, *leaves[1:], 1e-3))
        again, _ = _run(operands, grad, groups, 'null')
        assert all(map(torch.equal, actual, again))
        with torch.no_grad():
            assert torch.equal(group_norm(operands[0], groups, *operands[1:], 1e-3, 'null'),
                               actual[0])
    assert {source for source, *_ in emulated} == {'group_norm.cu'}


@needs_library
def test_without_weight_and_gradients_of_gradients(emulated):
    operands, grad = _operands(torch.float32, (2, 6, 3, 4))
    for used in (1, 3):
        seconds = []
        for method, kind in (('null', torch.float32), ('torch', torch.float64)):
            (y, *firsts), leaves = _run(operands[:used], grad, 2, method, kind, True)
            seconds.append([y, *firsts, *torch.autograd.grad(
                sum(t.square().sum() for t in firsts), leaves, allow_unused=True)])
        # What nothing depends on has no gradient, or zeros, as the version of torch likes.
        for a, e in ([0 * operands[-1] if t is None else t for t in pair]
                     for pair in zip(*seconds)):
            # Second derivatives in float32.
            assert_close(a.double(), e.double(), rtol=1e-3, atol=1e-3)
    assert emulated


@needs_library
def test_refusals_and_wrong_arguments(monkeypatch):
    x = torch.randn(2, 8, 3, 3)
    assert explain_group_norm(x, 2)['refused'] == {
        'cuda': 'the CUDA kernels run on a GPU, x is on cpu'}
    assert explain_group_norm(x, 2, method='null') == {'chosen': 'null', 'refused': {}}
    for reason, arguments in (
            ('contiguous', (x.contiguous(memory_format=torch.channels_last), 2)),
            ('float16', (x.double(), 2)), ('do not divide', (x, 3)),
            ('aligned', (torch.randn(2 * 72 + 1)[1:].view(2, 8, 3, 3), 2)),
            ('Double', (x, 2, torch.ones(8, dtype=torch.float64)))):
        assert reason in explain_group_norm(*arguments, method='null')['refused']['cuda']
    with pytest.raises(RuntimeError, match="'cuda' of group_norm does not .*: .*GPU"):
        group_norm(x, 2, method='cuda')
    monkeypatch.setenv(METHOD_VARIABLE, 'triton')
    with pytest.raises(ValueError, match=f"{METHOD_VARIABLE} must be .*'triton'"):
        explain_group_norm(x, 2)
