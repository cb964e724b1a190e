"""torch.compile of the layers and networks in one graph, and autocast."""
import copy

import pytest
import torch
from common import COMPILES
from tolerances import assert_close
from torch import nn

from mmcontext.registry import MODELS

LAYERS = {
    'coconv': dict(type='mmcontext.CoConv2d', in_channels=8, out_channels=8),
    'pyconv': dict(type='mmcontext.PyConv2d', in_channels=32, out_channels=32, levels=2),
    'cot': dict(type='mmcontext.CoT2d', in_channels=32),
    'coxt': dict(type='mmcontext.CoT2d', in_channels=32, cardinality=2),
    'involution': dict(type='mmcontext.Involution2d', in_channels=32, stride=2),
    'cvolution': dict(type='mmcontext.CVolution2d', in_channels=32),
    'fused_involution': dict(type='mmcontext.Involution2d', in_channels=32, fused=True),
    'fused_cvolution': dict(type='mmcontext.CVolution2d', in_channels=32, fused=True),
}
NETWORKS = {
    'PyConvResNet': dict(depth=18, base_channels=64), 'CoTNet': dict(depth=50),
    'RedNet': dict(depth=26), 'fused CedNet': dict(depth=26, layer_cfg=dict(fused=True)),
}


def _network(name: str) -> nn.Module:
    return MODELS.build(copy.deepcopy(
        {'type': f'mmcontext.{name.split()[-1]}', 'base_channels': 32, **NETWORKS[name]}))


def _output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x)
    return y[0] if isinstance(y, tuple) else y


def _assert_compiles(model: nn.Module, x: torch.Tensor, tolerance: float) -> None:
    """Compare output and gradients of the compiled model, in train and eval, with eager.

    Forward and backward are captured, but not lowered: that is up to torch, and needs a compiler.
    """
    torch._dynamo.reset()
    for training in (True, False):
        eager, graph = (copy.deepcopy(model).train(training) for _ in range(2))
        compiled = torch.compile(graph, fullgraph=True, backend='aot_eager')
        if not training:
            with torch.no_grad():
                assert_close(_output(compiled, x), _output(eager, x), rtol=tolerance,
                             atol=tolerance)
            continue
        expected, actual = _output(eager, x), _output(compiled, x)
        assert_close(actual, expected, rtol=tolerance, atol=tolerance)
        cotangent = torch.randn_like(expected)
        expected.backward(cotangent)
        actual.backward(cotangent)
        for (name, mine), theirs in zip(graph.named_parameters(), eager.parameters()):
            error = (mine.grad - theirs.grad).abs().max() / (1 + theirs.grad.abs().max())
            assert error < tolerance, f'{name}: {error:.1e}'


@COMPILES
@pytest.mark.parametrize('config, channels_last', [
    *((config, False) for config in LAYERS.values()), (LAYERS['fused_cvolution'], True),
    (LAYERS['cot'], True)], ids=[*LAYERS, 'fused_cvolution_last', 'cot_last'])
def test_layer_compiles_in_one_graph(config, channels_last):
    torch.manual_seed(0)
    layer = MODELS.build(copy.deepcopy(config)).double()
    x = torch.randn(2, config['in_channels'], 8, 9, dtype=torch.float64)
    if channels_last:
        x, layer = (t.to(memory_format=torch.channels_last) for t in (x, layer))
    _assert_compiles(layer, x, 1e-8)  # float64, with gradients of batch statistics


@COMPILES
@pytest.mark.parametrize('name', NETWORKS)
def test_network_compiles_in_one_graph(name):
    torch.manual_seed(0)
    # float64 through a whole network, which amplifies rounding.
    _assert_compiles(_network(name).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64), 1e-6)


@COMPILES
@pytest.mark.parametrize('name', ['cot', 'involution', 'cvolution', 'fused_involution',
                                  'fused_cvolution'])
# Relative to the largest value: several layers round one after another.
@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_autocast_without_a_graph_break(name, dtype, tolerance):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = MODELS.build(copy.deepcopy(LAYERS[name])).eval()
    x = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        expected = layer(x)
        for run in (layer, torch.compile(layer, fullgraph=True, backend='aot_eager')):
            with torch.autocast('cpu', dtype):
                actual = run(x)
            assert actual.dtype == dtype
            error = (actual.float() - expected).abs().max() / expected.abs().max()
            assert error < tolerance


@pytest.mark.parametrize('name', ['CoTNet', 'RedNet', 'fused CedNet'])
def test_autocast_training_step(name):
    torch.manual_seed(0)
    network = _network(name)
    with torch.autocast('cpu', torch.bfloat16):
        y = _output(network, torch.randn(2, 3, 64, 64))
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
