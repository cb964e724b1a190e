"""Channel gates with the CUDA kernels, emulated on the CPU."""
import pytest
import torch
from tolerances import assert_close, assert_near
from torch.utils.checkpoint import checkpoint

from mmcontext.ops.channel_gate import (
    METHOD_VARIABLE,
    explain_channel_gate,
    gate_by_convolution,
    gate_by_means,
)
from mmcontext.ops.native_library import UNAVAILABLE

needs_library = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')
# Means, gates and products are rounded one after another.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize('dtype', TOLERANCE, ids=str)


def _maps(dtype, count, shape=(3, 24, 5, 7)):
    return [torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
            for _ in range(count)]


def _by_means(method, maps, matrix, grad, create_graph=False, exact=False):
    """Result and gradients of the maps and of the matrix that gives the logits."""
    leaves = [t.detach().requires_grad_() for t in (*maps, matrix)]
    *maps, matrix = leaves
    y = gate_by_means(maps[0], lambda m: (m.flatten(1) @ matrix)[:, :, None, None],
                      maps[1] if len(maps) > 1 else None, method, exact)
    grads = torch.autograd.grad(y, leaves, grad, create_graph=create_graph)
    return [y, *grads], leaves


def _close(actual, expected, dtype):
    assert_near(actual, expected, TOLERANCE[dtype])


@needs_library
@DTYPES
@pytest.mark.parametrize('maps', [1, 2])
@pytest.mark.parametrize('exact', [False, True], ids=['means as x', 'means in float32'])
def test_gate_of_means_against_float64(emulated, dtype, maps, exact):
    if not exact and dtype is torch.float16 and torch.__version__ < (2, 2):
        pytest.skip('this torch has no products of float16 on a CPU')
    # 264 channels: several tiles in half precision, and unused lanes.
    for shape in ((3, 24, 5, 7), (2, 264, 3, 3)):
        *operands, grad = _maps(dtype, maps + 1, shape)
        matrix = (torch.randn(shape[1], shape[1] * maps) / shape[1] ** 0.5).to(
            torch.float32 if exact else dtype)
        actual, _ = _by_means('null', operands, matrix, grad, exact=exact)
        expected, _ = _by_means('torch', [t.double() for t in operands], matrix.double(),
                                grad.double())
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual[:maps + 1])
        _close(actual, expected, dtype)
    # Sums, result, sums of the gradient, one gradient through both paths: no more launches.
    assert [defines.split()[0] for _, defines, _ in emulated] == 2 * [
        '-DPASS=0', '-DPASS=2', '-DPASS=3', '-DPASS=5']


@needs_library
def test_images_of_several_blocks_and_the_same_every_time(emulated):
    x, other, grad = _maps(torch.float32, 3, (1, 128, 40, 33))
    matrix = torch.randn(128, 256) / 8
    runs = [_by_means('null', (x, other), matrix, grad)[0] for _ in range(2)]
    assert all(map(torch.equal, *runs))
    assert {'-DPASS=1', '-DPASS=4'} <= {defines.split()[0] for _, defines, _ in emulated}
    expected, _ = _by_means('torch', [x.double(), other.double()], matrix.double(), grad.double())
    _close(runs[0], expected, torch.float32)


@needs_library
@pytest.mark.parametrize('kept', ['x', 'other', 'matrix', 'detached'])
def test_gradients_of_some_operands(emulated, kept):
    x, other, grad = _maps(torch.float32, 3)
    matrix = torch.randn(24, 48)
    found = {}
    for method, kind in (('null', torch.float32), ('torch', torch.float64)):
        leaves = dict(x=x, other=other, matrix=matrix)
        leaves = {name: t.to(kind).clone().requires_grad_(kept in (name, 'detached'))
                  for name, t in leaves.items()}
        y = gate_by_means(
            leaves['x'], lambda m: ((m.detach() if kept == 'detached' else m).flatten(1)
                                    @ leaves['matrix'])[:, :, None, None],
            leaves['other'], method)
        found[method] = torch.autograd.grad(y, [t for t in leaves.values() if t.requires_grad],
                                            grad.to(kind))
    _close(found['null'], found['torch'], torch.float32)


@needs_library
@pytest.mark.parametrize('maps', [1, 2])
def test_gradients_of_gradients(emulated, maps):
    *operands, grad = _maps(torch.float32, maps + 1, (2, 4, 3, 2))
    matrix, seconds = torch.randn(4, 4 * maps), []
    for method, kind in (('null', torch.float32), ('torch', torch.float64)):
        (_, *firsts), leaves = _by_means(method, [t.to(kind) for t in operands],
                                         matrix.to(kind), grad.to(kind), create_graph=True)
        seconds.append(torch.autograd.grad(sum(t.square().sum() for t in firsts), leaves))
    for a, e in zip(*seconds):
        # Second derivatives in float32: small ones are differences.
        assert_close(a.double(), e, rtol=1e-4, atol=1e-4)


@needs_library
def test_checkpointed_gates_have_the_same_gradients(emulated):
    x, other, grad = _maps(torch.float32, 3)
    matrix = torch.randn(24, 48) / 5
    found = []
    for checkpointed in (True, False):
        leaves = [t.detach().clone().requires_grad_() for t in (x, other, matrix)]

        def gated(x, other, matrix):
            # (A separate map before it, as in a layer.)
            return gate_by_means(x * 2, lambda m: (m.flatten(1) @ matrix)[:, :, None, None],
                                 other * 3, 'null')

        y = checkpoint(gated, *leaves, use_reentrant=False) if checkpointed else gated(*leaves)
        found.append(torch.autograd.grad(y, leaves, grad))
    assert all(map(torch.equal, *found))


def test_gradcheck_of_the_reference():
    x, other = (t.requires_grad_() for t in _maps(torch.float64, 2, (2, 4, 3, 2)))
    matrix = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, other, m: gate_by_means(x, lambda v: (v.flatten(1) @ m)[:, :, None, None],
                                          other), (x, other, matrix))
    assert torch.autograd.gradcheck(lambda x, w: gate_by_convolution(x, w, 2, 20), (x, weight))


@needs_library
@DTYPES
def test_gate_of_a_convolution_against_float64(emulated, dtype):
    x, grad = _maps(dtype, 2, (3, 32, 6, 4))
    weight = torch.randn(32, 8, 3, 3)
    found = {}
    for method, kind in (('null', None), ('torch', torch.float64)):
        a, w = (t.to(kind or t.dtype).requires_grad_() for t in (x, weight))
        y = gate_by_convolution(a, w, 4, 48, method)
        found[method] = [y, *torch.autograd.grad(y, (a, w), grad.to(y.dtype))]
        assert found[method][2].dtype == w.dtype
    _close(found['null'], found['torch'], dtype)
    assert len(emulated) == 4
    # The convolution that it replaces.
    padded = torch.nn.functional.conv2d(x.double(), weight.double(), padding=2, groups=4)
    expected = x.double() * padded.mean((2, 3), keepdim=True)
    assert_close(gate_by_convolution(x.double(), weight.double(), 4, 48), expected)


@needs_library
def test_gradients_of_gradients_of_the_gate_of_a_convolution(emulated):
    x, grad = _maps(torch.float32, 2, (2, 4, 3, 2))
    weight, seconds = torch.randn(4, 2, 3, 3), []
    for method, kind in (('null', torch.float32), ('torch', torch.float64)):
        a, w = (t.to(kind).requires_grad_() for t in (x, weight))
        y = gate_by_convolution(a, w, 2, 20, method)
        firsts = torch.autograd.grad(y, (a, w), grad.to(kind), create_graph=True)
        seconds.append(torch.autograd.grad(sum(t.square().sum() for t in firsts), (a, w)))
    for actual, expected in zip(*seconds):
        # Second derivatives in float32.
        assert_close(actual.double(), expected, rtol=1e-4, atol=1e-3)


@needs_library
def test_maps_that_were_given_out_are_for_one_gate_and_notice_changes(emulated):
    x, = _maps(torch.float32, 1)
    x = x.requires_grad_() * 1
    logits = torch.randn(3, 24, 1, 1)
    means, given = torch.ops.mmcontext_native.gate_means(x, None, False, 'null')
    y = torch.ops.mmcontext_native.gate_channels(given, None, logits)
    with pytest.raises(RuntimeError, match='in one gate only'):
        torch.ops.mmcontext_native.gate_channels(given, None, logits)
    with pytest.raises(ValueError, match='needs .3, 48, 1, 1. logits'):
        torch.ops.mmcontext_native.gate_channels(given, given, logits)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()


@needs_library
def test_refusals_and_wrong_arguments(monkeypatch):
    x = torch.randn(2, 8, 3, 3)
    assert explain_channel_gate(x) == {
        'chosen': 'torch', 'refused': {'cuda': 'the CUDA kernels run on a GPU, x is on cpu'}}
    last = x.contiguous(memory_format=torch.channels_last)
    assert explain_channel_gate(last, method='null') == {'chosen': 'null', 'refused': {}}
    for reason, maps in (('channels-last', (x, )), ('float16', (last.double(), )),
                         ('differs from x', (last, x)),
                         ('16 bytes', (_maps(torch.float32, 1, (2, 3, 2, 2))[0], ))):
        assert reason in explain_channel_gate(*maps, method='null')['refused']['cuda']
    for call in (lambda method: gate_by_means(x, lambda m: m, method=method),
                 lambda method: gate_by_convolution(x, torch.ones(8, 8, 3, 3), 1, 9, method)):
        with pytest.raises(RuntimeError, match="'cuda' of the channel gate does not .*: .*GPU"):
            call('cuda')
        with pytest.raises(ValueError, match="method must be .*'triton'"):
            call('triton')
    monkeypatch.setenv(METHOD_VARIABLE, 'triton')
    with pytest.raises(ValueError, match=f"{METHOD_VARIABLE} must be .*'triton'"):
        explain_channel_gate(x)
