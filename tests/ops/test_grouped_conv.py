import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tolerances import DOUBLE, SINGLE, assert_close

from mmcontext.ops import explain_grouped_conv, grouped_conv, grouped_conv2d
from mmcontext.ops.grouped_conv import METHOD_VARIABLE
from mmcontext.ops.native_library import UNAVAILABLE


@pytest.mark.parametrize('groups, kernel, stride, padding', [
    (2, 1, 1, 0), (4, 3, 2, 1), (16, (5, 3), 1, 'same'), (1, 3, 1, 1)])
def test_dense_equals_grouped(groups, kernel, stride, padding):
    conv = torch.nn.Conv2d(16, 32, kernel, stride, padding, groups=groups).double()
    x = torch.randn(2, 16, 7, 9, dtype=torch.float64, requires_grad=True)
    operands = (x, conv.weight, conv.bias)
    expected = F.conv2d(*operands, stride, padding, 1, groups)
    actual = grouped_conv2d(*operands, stride, padding, 1, groups, method='dense')
    assert_close(actual, expected, DOUBLE)
    cotangent = torch.randn_like(expected)
    for a, e in zip(torch.autograd.grad(actual, operands, cotangent),
                    torch.autograd.grad(expected, operands, cotangent)):
        assert_close(a, e, DOUBLE)


class OnGpu:
    """A map as if it were on a GPU."""
    is_cuda, device = True, SimpleNamespace(index=-1)

    def __init__(self, channels, size, dtype=torch.bfloat16, last=True):
        self.shape, self.dtype, self.last = (64, channels, size, size), dtype, last

    def is_contiguous(self, memory_format):
        return self.last


# Input and output channels, kernel, groups, size in networks, the fastest method as measured, and
# as estimated with our own kernels.
@pytest.mark.parametrize('channels, outputs, kernel, groups, size, measured, estimated', [
    (64, 16, 9, 16, 56, 'dense', 'direct'), (64, 16, 5, 4, 56, 'grouped', 'direct'),
    (128, 32, 9, 32, 56, 'dense', 'direct'), (128, 64, 7, 8, 28, 'dense', 'direct'),
    (256, 64, 5, 64, 28, 'dense', 'direct'), (512, 256, 5, 64, 14, 'grouped', 'direct'),
    (96, 96, 3, 8, 56, 'dense', 'direct'), (64, 64, 3, 4, 56, 'dense', 'direct'),
    (256, 128, 5, 4, 14, 'dense', 'dense'), (192, 48, 1, 2, 56, 'dense', 'dense'),
    (768, 768, 3, 8, 7, 'dense', 'dense'), (512, 512, 3, 4, 7, 'dense', 'dense')])
def test_fastest_by_measurement_and_estimate(monkeypatch, channels, outputs, kernel, groups, size,
                                             measured, estimated):
    monkeypatch.setattr(grouped_conv, '_refusal_of_gpu', lambda index: '')
    weight = torch.empty(outputs, channels // groups, kernel, kernel)
    for other in (OnGpu(channels, size, torch.float32), OnGpu(channels, size, last=False)):
        answer = explain_grouped_conv(other, weight, groups)
        assert answer['chosen'] == 'grouped' and 'it pays' in answer['refused']['dense']
    if not UNAVAILABLE:
        assert explain_grouped_conv(OnGpu(channels, size), weight, groups)['chosen'] == estimated
        assert explain_grouped_conv(OnGpu(channels, size), weight, groups,
                                    'library')['chosen'] == measured
    monkeypatch.setattr(grouped_conv, '_refusal_of_gpu', lambda index: 'it is too old')
    answer = explain_grouped_conv(OnGpu(channels, size), weight, groups)
    assert answer['chosen'] == measured
    assert answer['refused']['direct'] == (UNAVAILABLE or 'it is too old')


def test_method_is_chosen_forced_and_explained(monkeypatch):
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(8, 2, 3, 3)
    answer = explain_grouped_conv(x, weight, 4)
    assert answer['chosen'] == 'grouped' and 'NVIDIA' in answer['refused']['dense']
    on_gpu = SimpleNamespace(is_cuda=True, device='cuda:0', shape=(64, 64, 56, 56))
    assert 'depth-wise' in grouped_conv._refusal(on_gpu, torch.ones(64, 1, 5, 5), 64)
    monkeypatch.setenv(METHOD_VARIABLE, 'dense')
    assert explain_grouped_conv(x, weight, 4)['chosen'] == 'dense'
    assert_close(grouped_conv2d(x, weight, padding=1, groups=4),
                 F.conv2d(x, weight, padding=1, groups=4), SINGLE)
    monkeypatch.setenv(METHOD_VARIABLE, 'direct')
    reason = re.escape(UNAVAILABLE) if UNAVAILABLE else 'x is on cpu'
    with pytest.raises(RuntimeError, match=f"'direct' of grouped_conv2d does not .*: {reason}"):
        grouped_conv2d(x, weight, padding=1, groups=4)
    monkeypatch.setenv(METHOD_VARIABLE, 'sparse')
    with pytest.raises(ValueError, match="MMCONTEXT_GROUPED_CONV .* got 'sparse'"):
        grouped_conv2d(x, weight, groups=4)


def test_layers_take_it_on_a_gpu_unless_somebody_looks(monkeypatch):
    from mmcontext.layers import conv_norm
    conv, calls = torch.nn.Conv2d(8, 8, 3, padding=1, groups=4), []
    monkeypatch.setattr(conv_norm, 'grouped_conv2d', lambda *args: calls.append(args) or args[0])
    x = torch.randn(1, 8, 4, 4)
    assert conv_norm._run_on_gpu(x, conv, None, None, None) is x
    assert calls[0][1:] == (conv.weight, conv.bias, (1, 1), (1, 1), (1, 1), 4)
    conv.register_forward_pre_hook(lambda module, args: (torch.zeros(1, 8, 4, 4), ))
    assert conv_norm._run_on_gpu(x, conv, None, None, None).shape == (1, 8, 4, 4)
    assert len(calls) == 1
