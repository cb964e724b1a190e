"""Batch norm, residual and activation with the CUDA kernels, emulated on the CPU."""
import copy
import itertools

import pytest
import torch
from tolerances import ROUNDED_ONCE, SINGLE, assert_close, assert_near
from torch import nn

from mmcontext.layers.conv_norm import run_together
from mmcontext.ops.batch_norm_act import (
    METHOD_VARIABLE,
    batch_norm_act,
    explain_batch_norm_act,
)
from mmcontext.ops.native_library import UNAVAILABLE

needs_library = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')


def _operands(dtype, channels, size=(3, 5, 7), residual=False):
    batch, height, width = size

    def tensor():
        return torch.randn(batch, channels, height, width).to(dtype).contiguous(
            memory_format=torch.channels_last)

    # A mean far from zero must not cost precision.
    maps = [(tensor() + torch.randn(channels)[:, None, None] * 4).to(dtype), tensor()]
    maps += [tensor()] if residual else []
    vectors = [torch.rand(channels) + 0.5, torch.randn(channels), torch.randn(channels),
               torch.rand(channels) + 0.5]
    return maps, vectors


def _run(maps, vectors, training, activation, method, frozen=False):
    """Output, gradients of x, residual, weight and bias, and the running statistics."""
    (x, grad, *residual), (weight, bias, mean, variance) = maps, vectors
    leaves = [t.detach().requires_grad_() for t in (x, *residual)]
    affine = [t.clone().requires_grad_(not frozen) for t in (weight, bias)]
    running, count = [mean.clone(), variance.clone()], torch.tensor(4)
    y = batch_norm_act(leaves[0], *affine, *running, count, training, 0.3, 1e-3, activation,
                       leaves[1] if residual else None, method)
    assert y.is_contiguous(memory_format=torch.channels_last)
    wanted = leaves + ([] if frozen else affine)
    results = [y.detach(), *torch.autograd.grad(y, wanted, grad), *running]
    assert count == 4 + training
    return results


@needs_library
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['batch', 'given'])
def test_kernels_against_float64(emulated, dtype, training):
    for activation, residual, frozen in itertools.product(
            ('none', 'relu', 'silu'), (False, True), (False, True)):
        if activation == 'silu' and residual:
            continue
        channels = 24 if residual else 264  # one tile with unused lanes, several tiles
        maps, vectors = _operands(dtype, channels, residual=residual)
        actual = _run(maps, vectors, training, activation, 'null', frozen)
        expected = _run([t.double() for t in maps], [t.double() for t in vectors], training,
                        activation, 'torch', frozen)
        assert_near(actual, expected, ROUNDED_ONCE[dtype], least=1)
    assert {source for source, *_ in emulated} == {'batch_norm.cu'}


@needs_library
def test_a_bias_before_the_statistics_only_shifts_the_running_mean(emulated, monkeypatch):
    monkeypatch.setenv(METHOD_VARIABLE, 'null')
    conv, norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
    with torch.no_grad():
        conv.bias.mul_(100)
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(nn.Sequential(conv, norm)).double()
    y, expected = run_together(x, conv, norm), exact(x.double())
    assert_close(y.double(), expected, SINGLE)
    assert_close(norm.running_mean.double(), exact[1].running_mean, SINGLE)
    grad = torch.randn_like(y)
    parameters = [conv.weight, conv.bias, *norm.parameters()]
    found = torch.autograd.grad(y, parameters, grad)
    for a, e in zip(found, torch.autograd.grad(expected, exact.parameters(), grad.double())):
        assert_close(a.double(), e, SINGLE)
    assert not found[1].any() and emulated
    # Where the kernels cannot be used, it is added as ever.
    emulated.clear()
    x = x[:1, :, :1, :1]
    with pytest.raises(ValueError, match='more than 1 value'):
        norm(conv(x))
    assert_close(run_together(x, conv, norm), norm.eval()(conv(x)), SINGLE)
    assert not emulated
    with pytest.raises(ValueError, match='offset needs statistics of the batch'):
        torch.ops.mmcontext_native.batch_norm_act(
            y.detach(), None, None, None, norm.running_mean, norm.running_var, None, conv.bias,
            False, 0.1, 1e-5, 'none', 'null')


@needs_library
def test_many_pixels_take_several_blocks_and_are_the_same_every_time(emulated):
    maps, vectors = _operands(torch.float32, 4, (2, 40, 33), residual=True)
    first, second = (_run(maps, vectors, True, 'relu', 'null') for _ in range(2))
    assert all(map(torch.equal, first, second))
    expected = _run([t.double() for t in maps], [t.double() for t in vectors], True, 'relu',
                    'torch')
    for a, e in zip(first, expected):
        assert_close(a.double(), e, SINGLE)


@needs_library
def test_gradients_of_gradients(emulated):
    for activation, training, with_residual in itertools.product(
            ('relu', 'silu'), (True, False), (False, True)):
        if activation == 'silu' and with_residual:
            continue
        maps, (weight, bias, mean, variance) = _operands(torch.float32, 4, residual=with_residual)
        seconds = []
        for method, kind in (('null', torch.float32), ('torch', torch.float64)):
            x, grad, *residual = (t.to(kind).requires_grad_() for t in maps)
            w, b = (t.to(kind).requires_grad_() for t in (weight, bias))
            y = batch_norm_act(x, w, b, mean.to(kind), variance.to(kind), None, training, 0.1,
                               1e-3, activation, residual[0] if residual else None, method)
            of_x, of_w = torch.autograd.grad(y, (x, w), grad, create_graph=True)
            seconds.append(torch.autograd.grad(of_x.square().sum() + of_w.square().sum(),
                                               (x, w, grad)))
        for a, e in zip(*seconds):
            assert_close(a.double(), e, rtol=1e-3, atol=1e-3)  # second derivatives in float32


@needs_library
@pytest.mark.parametrize('training', [True, False])
def test_modules_of_a_layer_take_the_kernels(emulated, monkeypatch, training):
    monkeypatch.setenv(METHOD_VARIABLE, 'null')
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    for act in (nn.ReLU(inplace=True), nn.SiLU(), nn.GELU(), None):
        kept = {name: value.clone() for name, value in norm.state_dict().items()}
        norm.train(training)
        y = run_together(x, conv, norm, act, residual)
        after = {name: value.clone() for name, value in norm.state_dict().items()}
        norm.load_state_dict(kept)
        expected = norm(conv(x)) + residual
        assert_close(y, act(expected) if act else expected, SINGLE)
        for name, value in norm.state_dict().items():
            assert_close(after[name], value)
    assert emulated
    emulated.clear()
    handle = norm.register_forward_hook(lambda *_: None)
    run_together(x, conv, norm, nn.ReLU(), residual)
    handle.remove()
    with torch.autograd.forward_ad.dual_level():
        run_together(x, conv, norm, nn.ReLU(), residual)
    norm.momentum = None
    run_together(x, conv, norm, nn.ReLU(), residual)
    assert not emulated


@needs_library
def test_refusals_and_wrong_arguments(monkeypatch):
    x = torch.randn(2, 8, 3, 3)
    assert explain_batch_norm_act(x) == {
        'chosen': 'torch', 'refused': {'cuda': 'the CUDA kernels run on a GPU, x is on cpu'}}
    last = x.contiguous(memory_format=torch.channels_last)
    for reason, arguments in (
            ('channels-last', dict(x=x)), ('float16', dict(x=last.double())),
            ('16 bytes', dict(x=last[:, :3].contiguous(memory_format=torch.channels_last))),
            ('residual differs', dict(x=last, residual=x)),
            ('SiLU follows', dict(x=last, residual=last, activation='silu')),
            ('statistics', dict(x=last[:1, :, :1, :1])), ('subclass', dict(x=nn.Parameter(last))),
            ('Double', dict(x=last, weight=torch.ones(8, dtype=torch.float64)))):
        assert reason in explain_batch_norm_act(**arguments, method='null')['refused']['cuda']
    assert explain_batch_norm_act(last, method='null') == {'chosen': 'null', 'refused': {}}
    with pytest.raises(ValueError, match="activation must be .*'gelu'"):
        batch_norm_act(x, activation='gelu')
    with pytest.raises(RuntimeError, match="'cuda' of batch_norm_act does not .*: .*GPU"):
        batch_norm_act(x, method='cuda')
    monkeypatch.setenv(METHOD_VARIABLE, 'triton')
    with pytest.raises(ValueError, match=f"{METHOD_VARIABLE} must be .*'triton'"):
        explain_batch_norm_act(x)
