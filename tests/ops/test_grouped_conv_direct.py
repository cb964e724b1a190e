"""The direct kernels for narrow groups, emulated on the CPU, against float64."""
import ctypes

import pytest
import torch
import torch.nn.functional as F
from tolerances import HALVED, ROUNDED_ONCE, assert_close, assert_near

from mmcontext.ops import gpu_kernels, grouped_conv, grouped_conv2d, kernel_cache
from mmcontext.ops.grouped_conv import METHOD_VARIABLE
from mmcontext.ops.native_library import UNAVAILABLE

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')
HALF, BF16 = torch.float16, torch.bfloat16


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
    assert_near(actual, wanted, ROUNDED_ONCE[dtype])


@pytest.mark.parametrize('case', [
    (BF16, (1, 32, 17, 19), 8, 9, 8), (HALF, (1, 32, 12, 14), 8, 5, 8, 2),
    (BF16, (2, 32, 11, 6), 8, 7, 4, 2, True), (HALF, (1, 64, 7, 7), 16, 5, 4, 1, True, True),
    (BF16, (1, 24, 8, 8), 24, 3, 2), (HALF, (1, 64, 7, 5), 64, 3, 2, 1, False, True)], ids=str)
def test_kernels_equal_float64(emulated, case):
    check(*case)
    assert [entry for _, _, entry in emulated] == ['grouped_map', 'grouped_map',
                                                   'grouped_weight', 'grouped_sum']


class OneBlock:
    """An emulated kernel in which one block does all the work of a set of groups."""

    def __init__(self, library, entry):
        self.library, self.entry, self.parameter_size = library, entry, library.parameter_size

    def launch(self, grid, block, shared, parameters, *ranges):
        if self.entry == 'grouped_sum':
            ctypes.c_int.from_address(parameters.value + 32).value = 1  # parts
        else:
            grid[0] = 1
        return self.library.launch(grid, block, shared, parameters, *ranges)


def test_a_block_goes_from_part_to_part(emulated, emulator, monkeypatch):
    compiled = emulator._compile_kernel
    monkeypatch.setattr(emulator, '_compile_kernel',
                        lambda kernel: OneBlock(compiled(kernel), kernel[2]))
    check(HALF, (3, 32, 12, 14), 8, 5, 8, 2)


@pytest.mark.parametrize('stride', [1, 2])
def test_pyramid_equals_its_levels(emulated, monkeypatch, stride):
    from mmcontext.layers import PyConv2d
    layer = PyConv2d(32, 32, stride=stride, groups=(1, 2, 4, 8)).double()
    values = torch.randn(1, 32, 6, 9).to(BF16)
    cotangent = torch.randn(1, 32, *(-(-n // stride) for n in (6, 9))).to(BF16)
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(BF16).double()
    x = values.double().requires_grad_()
    operands = (x, *layer.parameters())
    wanted = [layer(x)]
    wanted += torch.autograd.grad(wanted[0], operands, cotangent.double())
    assert not emulated
    layer.to(BF16)
    x = inside(values, BF16).contiguous(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.setenv(METHOD_VARIABLE, 'null')
    monkeypatch.setattr(grouped_conv, 'estimated_microseconds', lambda x, weight, stride, groups,
                        *_: {'dense' if groups == 2 else 'direct': 1.})
    y = layer(x)
    actual = [y, *torch.autograd.grad(y, (x, *layer.parameters()), cotangent)]
    assert [entry for _, _, entry in emulated] == [
        *['grouped_map'] * 2, *['grouped_weight', 'grouped_sum', 'grouped_map'] * 2]
    assert_near(actual, wanted, 3 * ROUNDED_ONCE[BF16])  # the gradient of x after each level


@pytest.mark.skipif(not torch.version.cuda, reason='torch is built without CUDA')
def test_kernels_compile(emulated, tmp_path, monkeypatch):
    monkeypatch.setenv(kernel_cache.CACHE_VARIABLE, str(tmp_path))
    check(HALF, (1, 16, 5, 5), 8, 3, 4)
    for source, defines, _ in emulated:
        for target in ('sm_80', 'compute_90'):
            assert gpu_kernels.compile_kernel(source, defines, target)


def test_operator_is_registered_whole(emulated):
    op = torch.ops.mmcontext.grouped_conv_direct.default
    x = torch.randn(1, 8, 5, 6).to(BF16).contiguous(memory_format=torch.channels_last)
    w = torch.randn(8, 2, 3, 3, requires_grad=True)
    with torch.autocast('cpu', BF16):
        y = op(x.float(), w, None, 2, 4, 'null')
    assert y.dtype == BF16 and torch.autograd.grad(y.sum(), w)[0].dtype == torch.float32
    assert_close(y, op(x, w.to(BF16), None, 2, 4, ''), HALVED)
    if hasattr(torch.library, 'opcheck'):  # torch 2.4
        torch.library.opcheck(op, (x.float(), w, None, 2, 4, ''))
    # Derivatives of the gradients are those of standard functions.
    x, w = x.requires_grad_(), w.detach().to(BF16).requires_grad_()
    launches = len(emulated)
    grad, = torch.autograd.grad(op(x, w, None, 1, 4, 'null').sum(), w, create_graph=True)
    assert len(emulated) == launches + 1
    expected, = torch.autograd.grad(F.conv2d(x, w, None, 1, 1, 1, 4).sum(), w, create_graph=True)
    assert_close(torch.autograd.grad(grad.square().sum(), x),
                 torch.autograd.grad(expected.square().sum(), x))


@pytest.mark.parametrize('geometry, reason', [
    (dict(dilation=2, padding=2), 'dilation 1 and padding 1'), (dict(padding=0), 'padding 1'),
    (dict(padding=1, stride=(1, 2)), 'square kernels and strides'),
    (dict(padding=1, stride=3), 'supports strides 1 and 2')], ids=str)
def test_other_geometries_are_refused(geometry, reason):
    x, w = torch.randn(1, 8, 6, 6).to(HALF), torch.randn(8, 2, 3, 3).to(HALF)
    with pytest.raises(RuntimeError, match=f'does not .*: .*{reason}'):
        grouped_conv2d(x, w, groups=4, method='null', **geometry)
    with pytest.raises(RuntimeError, match='half precision'):
        grouped_conv2d(x.float(), w.float(), None, 1, 1, 1, 4, method='null')
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match='forward-mode'):
        grouped_conv2d(x, w, None, 1, 1, 1, 4, method='null')


@pytest.mark.parametrize('sizes, reason', [
    ((3, 1, 8, 3), 'an odd number'), ((2, 1, 4, 3), 'multiple of 8'),
    ((4, 4, 8, 11), 'kernel sizes 3'), ((256, 256, 4, 3), 'registers')], ids=str)
def test_other_groups_are_refused(sizes, reason):
    assert reason in torch.ops.mmcontext_native.grouped_conv_refusal(*sizes, 1)


def test_every_geometry_of_the_networks_is_planned():
    # Channels per group, groups and kernel in PyConvResNet, PyConvHGResNet and CoTNeXt.
    for channels, outputs, groups, kernel in (
            (4, 1, 16, 9), (8, 2, 8, 7), (16, 4, 4, 5), (16, 8, 8, 7), (32, 8, 4, 5),
            (4, 1, 32, 3), (4, 1, 32, 5), (4, 1, 32, 7), (4, 1, 32, 9), (8, 2, 32, 3),
            (4, 1, 64, 5), (4, 2, 64, 7), (16, 8, 32, 3), (8, 4, 64, 5), (32, 32, 32, 3),
            (12, 12, 8, 3)):
        for stride in (1, 2):
            geometry = (channels, outputs, groups, kernel, stride)
            assert not torch.ops.mmcontext_native.grouped_conv_refusal(*geometry), geometry
            times = torch.ops.mmcontext_native.grouped_conv_microseconds(*geometry, 64, 28, 28, -1)
            assert max(times) < 200, geometry
