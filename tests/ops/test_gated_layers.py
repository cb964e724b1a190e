"""Whole layers on their code paths for a GPU, with the kernels emulated on the CPU."""
import copy

import pytest
import torch
from tolerances import SINGLE_LAYERS, assert_close
from torch import nn

from mmcontext.layers import CoT2d, CVolution2d, Involution2d, SplitAttentionConv2d, cot
from mmcontext.layers.avg_pool import AvgPool2d
from mmcontext.layers.pooled_logits import pooled_operands
from mmcontext.ops import avg_pool, batch_norm_act, channel_gate, group_norm, pair_conv
from mmcontext.ops.local_aggregation.backends import BACKEND_VARIABLE
from mmcontext.ops.native_library import UNAVAILABLE

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason='installed without a compiler')
# With the kernels that each must launch in a step, including the aggregation's.
LAYERS = {
    'CoT2d': (lambda: CoT2d(32), {'batch_norm', 'channel_gate', 'group_norm', 'local_aggregation'}),
    'CoT2d, stride 2': (lambda: CoT2d(16, 24, stride=2, bias=True),
                        {'batch_norm', 'channel_gate', 'local_aggregation', 'avg_pool'}),
    'CoXt': (lambda: CoT2d(32, cardinality=2),
             {'batch_norm', 'channel_gate', 'group_norm', 'local_aggregation'}),
    'SplitAttentionConv2d': (lambda: SplitAttentionConv2d(16), {'batch_norm', 'channel_gate'}),
    'CVolution2d': (lambda: CVolution2d(32, kernel_size=5, stride=2, gate_groups=4),
                    {'batch_norm', 'channel_gate', 'local_aggregation', 'avg_pool'}),
    'Involution2d': (lambda: Involution2d(32, kernel_size=3, stride=2),
                     {'batch_norm', 'local_aggregation', 'avg_pool'}),
    'AvgPool2d': (lambda: AvgPool2d(2, ceil_mode=True, count_include_pad=False), {'avg_pool'}),
}
VARIABLES = [BACKEND_VARIABLE, *(module.METHOD_VARIABLE for module in (
    avg_pool, batch_norm_act, channel_gate, group_norm, pair_conv))]


@pytest.fixture
def on_gpu(emulated, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.setenv(variable, 'null')
    monkeypatch.setattr(cot, 'wants_rows', lambda r: True)
    return emulated


def _step(layer, x, grad=None):
    x = x.detach().requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y) if grad is None else grad.to(y.dtype)
    return grad, [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


@pytest.mark.parametrize('name', LAYERS)
def test_layers_equal_float64(name, on_gpu, monkeypatch):
    torch.manual_seed(0)
    make, kernels = LAYERS[name]
    layer = make()
    wide, plain = copy.deepcopy(layer).double(), copy.deepcopy(layer)
    channels = getattr(layer, 'in_channels', 16)
    x = torch.randn(3, channels, 7, 6).contiguous(memory_format=torch.channels_last)
    grad, actual = _step(layer, x)
    assert kernels <= {source.split('.')[0] for source, *_ in on_gpu}
    if name.startswith('Co'):
        assert actual[0].is_contiguous(memory_format=torch.channels_last)
    for variable in VARIABLES:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(cot, 'wants_rows', lambda r: False)
    _, expected = _step(wide, x.double(), grad)
    _, rounded = _step(plain, x, grad)
    for a, r, e in zip(actual, rounded, expected):
        # (A batch norm of three pooled values amplifies float32's rounding with any method.)
        allowed = torch.maximum(1e-4 * e.abs().max().clamp_min(1), 4 * (r - e).abs().max())
        assert (a - e).abs().max() <= allowed
    for a, e in zip(layer.buffers(), wide.buffers()):
        assert_close(a.double(), e.double(), SINGLE_LAYERS)


@pytest.mark.parametrize('make', [lambda: CoT2d(32), lambda: SplitAttentionConv2d(16)])
def test_logits_in_one_call_equal_those_of_the_modules(make, on_gpu):
    torch.manual_seed(0)
    layer = make()
    last = layer.attend if isinstance(layer, CoT2d) else layer.gate
    x = torch.randn(3, layer.in_channels, 7, 6).contiguous(memory_format=torch.channels_last)
    called, results = [], []
    for hooked in (False, True):
        copied = copy.deepcopy(layer)
        if hooked:
            gate = copied.attend if isinstance(layer, CoT2d) else copied.gate
            gate[1].register_forward_hook(lambda *_: called.append(1))
        results.append([copied(x), *copied.buffers(), copied.eval()(x)])
    assert len(called) == 2 and pooled_operands(last)
    for a, e in zip(*results):
        assert_close(a, e, SINGLE_LAYERS)
    assert not pooled_operands(copy.deepcopy(last).double())
    assert not pooled_operands(copy.deepcopy(last).append(nn.Identity()))
    last[0].part('norm').momentum = None
    assert not pooled_operands(last)
