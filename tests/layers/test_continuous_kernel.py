"""Continuous kernels: checkpoints of version 0.1, CUDA graphs, jointly evaluated filters."""
import copy

import pytest
import torch
from tolerances import DOUBLE, assert_close
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmcontext.layers import (
    CKConv2d,
    MAGNet,
    SeparableFlexConv1d,
    SeparableFlexConv2d,
    _kernel_state,
    continuous_kernel,
    flexconv,
    kernel_nets,
    set_resolution,
)
from mmcontext.models.backbones import CKResNet
from mmcontext.ops.fft_conv import choice
from mmcontext.ops.tracing import is_capturing

KERNEL = dict(hidden_channels=4, num_layers=2, omega_0=2.)


def named_as_in_0_1(name):
    return name.replace('kernel.net.', 'kernel_net.').replace('kernel.', '')


def test_checkpoints_of_0_1_load(tmp_path):
    """Whole networks, with buffers in the dtypes of 0.1, and the optimiser's state."""
    def build():
        torch.manual_seed(0)
        return nn.Sequential(SeparableFlexConv1d(2, 3, 'same', mask_cfg=dict(learn_mean=True)),
                             SeparableFlexConv1d(3, 2, 7, kernel_cfg=KERNEL))

    net, x = build(), torch.randn(2, 2, 9)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(x).square().sum().backward()
    optimiser.step()
    state = {named_as_in_0_1(key): value for key, value in net.state_dict().items()}
    assert {'0.train_length', '0.mask_width', '0.kernel_net.linears.0.weight'} < set(state)
    for key in state:
        if key.endswith('train_length'):
            state[key] = state[key].long()
        elif key.endswith('initialized'):
            state[key] = state[key].bool()
    loaded = build()
    loaded.load_state_dict(state, strict=True)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    # An optimiser identifies parameters only by their order, which was this one in 0.1.
    first = [named_as_in_0_1(name) for name, _ in net[0].named_parameters()]
    assert first[:3] == ['bias', 'mask_width', 'mask_mean']
    assert first[-2:] == ['channel_mixer.weight', 'channel_mixer.bias']
    assert all(name.startswith('kernel_net.') for name in first[3:-2])


def test_a_missing_entry_is_still_missed():
    layer = CKConv2d(2, 2, 3, kernel_cfg=KERNEL)
    state = {named_as_in_0_1(key): value for key, value in layer.state_dict().items()}
    del state['kernel_net.linears.0.weight']
    with pytest.raises(RuntimeError, match='kernel.net.linears.0.weight'):
        layer.load_state_dict(state)


class Unfit(TorchDispatchMode):
    """Fails on anything not allowed in a CUDA graph: tensors from numbers, their copies, reads."""

    kinds = ('lift_fresh', 'arange', 'linspace', 'full', 'scalar_tensor', '_to_copy', 'item',
             '_local_scalar_dense', 'equal', 'is_nonzero', 'nonzero')

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split('::')[1]
        assert name not in self.kinds, name
        return function(*args, **(kwargs or {}))


@pytest.fixture
def capturing(monkeypatch):
    """A function that simulates the capture of a CUDA graph."""
    def start():
        for module in (continuous_kernel, flexconv, _kernel_state, choice):
            monkeypatch.setattr(module, 'is_capturing', lambda tensor: True)

        def read(tensor):
            raise AssertionError('values are read')

        monkeypatch.setattr(torch.Tensor, 'tolist', read)
        return Unfit()

    return start


@pytest.mark.parametrize('training', [True, False])
def test_captured_steps_only_compute(training, capturing):
    net = CKResNet(26, base_channels=8, kernel_cfg=KERNEL).train(training)
    x = torch.randn(2, 3, 32, 32)
    with torch.set_grad_enabled(training):
        expected = net(x)[0].detach()
        with capturing():
            y = net(x)[0]
            if training:
                y.sum().backward()
    assert_close(y, expected)


def test_calls_that_sample_leave_what_is_kept():
    layer, x = CKConv2d(2, 2, 3, kernel_cfg=KERNEL).eval(), torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        layer(x)
        kept = layer.kernel.current()[0]
    layer(x).sum().backward()
    layer.cache = False
    with torch.no_grad():
        layer(x)
        layer.cache = True
        assert layer.kernel.current()[0] is kept
    layer.train()(x)
    assert not layer.kernel._kept


@torch.no_grad()
def test_a_kept_kernel_follows_the_switch_of_cropping():
    layer, x = SeparableFlexConv1d(2, 2, 33, kernel_cfg=KERNEL).eval(), torch.randn(1, 2, 40)
    layer(x)
    for crop, taps in ((False, 33), (True, 5)):
        layer.crop = crop
        assert layer.kernel.current()[0].shape == (2, 1, taps)
        layer(x)


@torch.no_grad()
def test_capturing_first_is_refused(capturing):
    x = torch.randn(1, 4, 8, 8)
    fresh, rescaled, loaded = (
        SeparableFlexConv2d(4, 4, 9, kernel_cfg=KERNEL).eval() for _ in range(3))
    for layer in (rescaled, loaded):
        layer(x)
    set_resolution(rescaled, 2.)
    set_resolution(rescaled, 1.)
    loaded.load_state_dict(loaded.state_dict())
    with capturing():
        for layer in (fresh, rescaled, loaded):
            with pytest.raises(RuntimeError, match='before it is exported or captured'):
                layer(x)


@torch.no_grad()
def test_an_eager_run_makes_ready_for_capture(capturing):
    """Even if the cached kernel could have been used: after a return to earlier values."""
    layer, x = SeparableFlexConv2d(4, 4, 9, kernel_cfg=KERNEL).eval(), torch.randn(1, 4, 8, 8)
    expected = layer(x)
    set_resolution(layer, 2.)
    set_resolution(layer, 1.)
    layer.load_state_dict(layer.state_dict())
    layer(x)
    with capturing():
        y = layer(x)
    assert torch.equal(y, expected)


@pytest.mark.skipif(torch.__version__ < (2, 5), reason='this torch asks the driver for them')
def test_stand_ins_for_a_gpus_tensors_capture_nothing():
    with FakeTensorMode():
        assert not is_capturing(torch.empty(2, device='cuda'))


def test_what_a_graph_reads_stays_alive(capturing):
    layer, x = CKConv2d(2, 2, 3, kernel_cfg=KERNEL), torch.randn(1, 2, 8, 8)
    layer(x)
    with capturing():
        layer(x)
    [positions] = layer.kernel._positions._captured
    assert positions.shape == (9, 2)
    assert copy.deepcopy(layer).kernel._positions._captured == []


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name', ['MAGNet', 'GaborNet', 'FourierNet', 'RandomFourierNet'])
def test_filters_together_are_the_filters_one_by_one(name, bias):
    net = getattr(kernel_nets, name)(2, 3, bias=bias, **KERNEL).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    positions = torch.rand(7, 2, dtype=torch.float64)

    def both(net):
        values = net.by_channel(positions)
        return [values, *torch.autograd.grad(values.square().sum(), list(net.parameters()))]

    found = both(net)
    for module in net.modules():
        module.register_forward_hook(lambda *args: None)
    for mine, theirs in zip(found, both(net)):
        assert_close(mine, theirs, DOUBLE)


def test_hooks_in_a_kernel_network_run():
    net, seen = MAGNet(2, 3, **KERNEL), []
    net.filters[1].linear.register_forward_hook(lambda *args: seen.append('filter'))
    net.output_linear.register_forward_hook(lambda *args: seen.append('output'))
    net.by_channel(torch.rand(5, 2))
    assert seen == ['filter', 'output']


def test_a_hook_gets_hold_of_the_kernel():
    layer, kernels = SeparableFlexConv1d(2, 2, 9, kernel_cfg=KERNEL), []
    layer.kernel.register_forward_hook(lambda module, args, kernel: kernels.append(kernel))
    layer(torch.randn(1, 2, 9))
    assert torch.equal(kernels[0], layer.sample_kernel())
