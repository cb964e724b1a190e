import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from common import COMPILES, since_torch
from tolerances import DOUBLE, assert_close

from mmcontext.ops import explain, local_aggregation, standard_operators

pytestmark = pytest.mark.usefixtures('nan_filled_memory')
OPS = torch.ops.mmcontext

GEOMETRIES = [
    pytest.param(dict(kernel_size=k, stride=s, padding=p, dilation=d), id=f'k{k}s{s}p{p}d{d}')
    for k, s, p, d in [(1, 1, 0, 1), (2, 1, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2),
                       (3, 3, 0, 1), (4, 2, 1, 1), (5, 1, 4, 2), (7, 1, 3, 1), (7, 2, 3, 1),
                       ((3, 5), (1, 2), (1, 0), (2, 1)), (3, 2, 5, 1)]
]
SHARES = ('block', 'interleaved')


def by_unfold(x, w, kernel_size, stride, padding, dilation, share):
    """The definition, on the columns that F.unfold copies out."""
    batch, channels = x.shape[:2]
    columns = F.unfold(x, kernel_size, dilation, padding, stride).view(
        batch, channels, w.shape[2], *w.shape[-2:])
    repeat = channels // w.shape[1]
    kernels = (w.repeat_interleave(repeat, 1) if share == 'block' else
               w.repeat(1, repeat, 1, 1, 1))
    return (columns * kernels).sum(2)


def operands(geometry, batch=2, channels=6, groups=3, size=(8, 7), dtype=torch.float64):
    kernel = geometry['kernel_size']
    taps = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
    x = torch.randn(batch, channels, *size, dtype=dtype)
    out = F.unfold(x[:1, :1], **geometry)
    pair = [(v, v) if isinstance(v, int) else v for v in geometry.values()]
    out_size = [(n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, k, s, p, d in zip(size, *pair)]
    assert out_size[0] * out_size[1] == out.shape[-1]
    w = torch.randn(batch, groups, taps, *out_size, dtype=dtype)
    return x.requires_grad_(), w.requires_grad_()


@pytest.mark.parametrize('backend', ['reference', 'torch'])
@pytest.mark.parametrize('share', SHARES)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_value_and_gradients_equal_the_unfolded_sum(geometry, share, backend):
    x, w = operands(geometry)
    expected = by_unfold(x, w, **geometry, share=share)
    actual = local_aggregation(x, w, **geometry, share=share, backend=backend)
    assert_close(actual, expected, DOUBLE)
    cotangent = torch.randn_like(expected)
    for a, e in zip(torch.autograd.grad(actual, (x, w), cotangent),
                    torch.autograd.grad(expected, (x, w), cotangent)):
        assert_close(a, e, DOUBLE)


@pytest.mark.parametrize('share', SHARES)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_first_and_second_derivatives(geometry, share):
    x, w = operands(geometry, batch=1, channels=2, groups=1, size=(5, 5))

    def function(x, w):
        return local_aggregation(x, w, **geometry, share=share)

    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w), fast_mode=True)


def test_third_derivative_follows():
    x, w = operands(dict(kernel_size=3, stride=1, padding=1, dilation=1), 1, 2, 2, (3, 3))
    y = local_aggregation(x, w, 3, padding=1)
    first, = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.pow(2).sum(), w, create_graph=True)
    third, = torch.autograd.grad(second.pow(2).sum(), x)
    expected = by_unfold(x, w, 3, 1, 1, 1, 'block')
    e1, = torch.autograd.grad(expected.pow(3).sum(), x, create_graph=True)
    e2, = torch.autograd.grad(e1.pow(2).sum(), w, create_graph=True)
    e3, = torch.autograd.grad(e2.pow(2).sum(), x)
    # Third derivatives, of powers: small elements are differences of large terms.
    assert_close(third, e3, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize('share', SHARES)
def test_memory_layouts_agree_and_channels_last_stays(share):
    x, w = (t.detach() for t in operands(dict(kernel_size=3, stride=1, padding=1, dilation=1)))
    expected = local_aggregation(x, w, 3, padding=1, share=share)
    last = x.to(memory_format=torch.channels_last)
    pixel_major = w.flatten(1, 2).to(memory_format=torch.channels_last).unflatten(1, (3, 9))
    strided = torch.stack((x, x), -1)[..., 0]
    for x_, w_ in itertools.product((x, last, strided), (w, pixel_major)):
        assert_close(local_aggregation(x_, w_, 3, padding=1, share=share), expected)
    y = local_aggregation(last, pixel_major, 3, padding=1, share=share)
    assert y.is_contiguous(memory_format=torch.channels_last)


# Sums in float32 are rounded once, by up to 2^-8 or 2^-11 of the value.
@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_low_precision_sums_in_float32(dtype, tolerance):
    geometry = dict(kernel_size=7, stride=1, padding=3, dilation=1)
    x, w = (t.detach().to(dtype).requires_grad_() for t in operands(geometry))
    y = local_aggregation(x, w, **geometry)
    expected = by_unfold(x.double(), w.double(), **geometry, share='block')
    assert y.dtype == dtype
    assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    cotangent = torch.randn_like(y)
    for a, e in zip(torch.autograd.grad(y, (x, w), cotangent),
                    torch.autograd.grad(expected, (x, w), cotangent.double())):
        assert_close(a.double(), e.double(), rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(
    torch.float16, marks=since_torch('2.2', 'float16 autocast on a CPU'))])
def test_autocast_brings_operands_together(dtype):
    x, w = operands(dict(kernel_size=3, stride=1, padding=1, dilation=1), dtype=torch.float32)
    with torch.autocast('cpu', dtype):
        y = local_aggregation(x, w.to(dtype), 3, padding=1)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == w.grad.dtype == torch.float32
    exact = local_aggregation(x, w, 3, padding=1)
    # Autocast rounds the operands too, and the sums cancel.
    assert_close(y.float(), exact, rtol=2e-2, atol=4e-2)


@since_torch('2.4', 'opcheck')
def test_operators_are_well_registered():
    x, w = operands(dict(kernel_size=3, stride=2, padding=1, dilation=1))
    grad = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    geometry = ([3, 3], [2, 2], [1, 1], [1, 1])
    for interleaved in (False, True):
        options = (*geometry, interleaved, '')
        torch.library.opcheck(OPS.local_aggregation.default, (x, w, *options))
        torch.library.opcheck(OPS.local_aggregation_grad_input.default,
                              (grad, w, [8, 7], *options))
        torch.library.opcheck(OPS.local_aggregation_grad_weight.default, (grad, x, 3, *options))


def test_backward_saves_only_the_operands():
    x, w = operands(dict(kernel_size=7, stride=1, padding=3, dilation=1))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        local_aggregation(x, w, 7, padding=3)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), w.data_ptr()}


def test_a_backend_is_forced_and_explained(monkeypatch):
    x, w = operands(dict(kernel_size=3, stride=1, padding=1, dilation=1))
    monkeypatch.setenv('MMCONTEXT_BACKEND', 'torch')
    assert explain(x, w, 3, padding=1)['chosen'] == 'torch'
    assert explain(x, w, 3, padding=1, backend='reference')['chosen'] == 'reference'
    assert explain(x, w, 3, padding=1, backend='auto')['chosen'] in ('native', 'torch')
    monkeypatch.setenv('MMCONTEXT_BACKEND', 'cupy')
    with pytest.raises(ValueError, match="variable MMCONTEXT_BACKEND must be one of auto, .*torch"
                                         ".* got 'cupy'"):
        local_aggregation(x, w, 3, padding=1)
    with pytest.raises(ValueError, match="argument backend must be one of .* got 'cutlass'"):
        local_aggregation(x, w, 3, padding=1, backend='cutlass')


def test_standard_operators_leave_no_custom_operator():
    x, w = operands(dict(kernel_size=3, stride=1, padding=1, dilation=1))
    with standard_operators():
        y = local_aggregation(x, w, 3, padding=1)
    names = set()
    pending = [y.grad_fn]
    while pending:
        node = pending.pop()
        names.add(type(node).__name__)
        pending += [parent for parent, _ in node.next_functions if parent is not None]
    assert not any('Forward' in name for name in names), names


@pytest.mark.parametrize('change, message', [
    (dict(x=torch.zeros(6, 8, 7)), r'x must be \[B, C, H, W\]'),
    (dict(w=torch.zeros(2, 27, 8, 7)), r'w must be \[B, G, Kh\*Kw, Ho, Wo\]'),
    (dict(w=torch.zeros(2, 4, 9, 8, 7)), '6 channels of x are not divisible by the 4 groups'),
    (dict(w=torch.zeros(2, 3, 9, 8, 6)), r'w must have shape \(2, 3, 9, 8, 7\)'),
    (dict(w=torch.zeros(2, 3, 9, 8, 7, dtype=torch.float64)), 'x and w must have one dtype'),
    (dict(w=torch.zeros(2, 3, 9, 8, 7, device='meta')), 'x and w must be on one device'),
    (dict(x=torch.zeros(2, 6, 8, 7, dtype=torch.long)), 'floating-point dtype, got torch.int64'),
    (dict(kernel_size=0), 'kernel_size must be an int or 2 ints, at least 1, got 0'),
    (dict(stride=(1, 2, 3)), 'stride must be'),
    (dict(padding=-1), 'padding must be'),
    (dict(kernel_size=31), 'larger than the padded input'),
    (dict(share='grouped'), "share must be 'block' or 'interleaved', got 'grouped'"),
])
def test_bad_arguments_are_named(change, message):
    arguments = dict(x=torch.zeros(2, 6, 8, 7), w=torch.zeros(2, 3, 9, 8, 7), kernel_size=3,
                     padding=1)
    with pytest.raises((ValueError, TypeError), match=message):
        local_aggregation(**{**arguments, **change})


def test_ops_need_torch_alone():
    code = ('import sys\n'
            'class Absent:\n'
            '    def find_spec(self, name, path=None, target=None):\n'
            '        if name.startswith(("mmengine", "mmcv", "mmpretrain", "mmdet", "mmseg")):\n'
            '            raise ImportError(name)\n'
            'sys.meta_path.insert(0, Absent())\n'
            'import torch, mmcontext.ops\n'
            'print(mmcontext.ops.local_aggregation(torch.ones(1, 1, 3, 3), '
            'torch.ones(1, 1, 9, 3, 3), 3, padding=1)[0, 0, 1, 1].item())\n')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == '9.0', result.stderr


@COMPILES
def test_compiled_code_keeps_the_operator_and_exported_code_has_none():
    x, w = (t.detach() for t in operands(dict(kernel_size=3, stride=1, padding=1, dilation=1)))
    graphs = []

    def note(graph, inputs):
        graphs.append(str(graph.code))
        return graph

    def function(x, w):
        return local_aggregation(x, w, 3, padding=1)

    class Module(torch.nn.Module):
        forward = staticmethod(function)

    torch.compile(function, backend=note, fullgraph=True)(x, w)
    assert 'mmcontext.local_aggregation' in graphs[0]
    exported = torch.export.export(Module(), (x, w), strict=False)
    assert 'mmcontext' not in exported.graph_module.code
    assert_close(exported.module()(x, w), function(x, w))
