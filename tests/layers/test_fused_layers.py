"""``fused=True`` of the layers and backbones changes the memory, not the numbers."""
import copy

import pytest
import torch
from torch import nn

from mmcontext.registry import MODELS

LAYERS = {
    'involution': dict(type='mmcontext.Involution2d', in_channels=32),
    'involution_stride': dict(type='mmcontext.Involution2d', in_channels=32, out_channels=8,
                              stride=2, bias=True),
    'involution_dilated': dict(type='mmcontext.Involution2d', in_channels=16, kernel_size=3,
                               dilation=2, group_channels=4),
    'cvolution': dict(type='mmcontext.CVolution2d', in_channels=32),
    'cvolution_stride': dict(type='mmcontext.CVolution2d', in_channels=32, stride=2),
}


def _run(model: nn.Module, x: torch.Tensor) -> dict:
    x = x.clone().requires_grad_()
    outputs = model(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs, )
    sum((y * y.detach().cos()).sum() for y in outputs).backward()
    return {'x': x.grad, **{str(i): y.detach() for i, y in enumerate(outputs)},
            **{name: p.grad for name, p in model.named_parameters()}}


def _assert_same(config: dict, plain: nn.Module, fused: nn.Module, x: torch.Tensor) -> None:
    fused.load_state_dict(plain.state_dict())
    for training in (True, False):
        plain.train(training).zero_grad()
        fused.train(training).zero_grad()
        expected, actual = _run(plain, x), _run(fused, x)
        assert None not in actual.values()
        for name, value in expected.items():
            error = (actual[name] - value).abs().max()
            # In training the gradient of a bias before a norm is only rounding errors.
            if not (training and name.endswith('reduce.0.bias')):
                error = error / value.abs().max()
            # float64, relative to the largest value.
            assert error < 1e-10, f'{name} of {config}, training={training}: {error:.1e}'


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('config', LAYERS.values(), ids=LAYERS)
def test_layer_equals_unfused_in_float64(config, channels_last):
    torch.manual_seed(0)
    plain = MODELS.build(copy.deepcopy(config)).double()
    fused = MODELS.build({**config, 'fused': True}).double()
    x = torch.randn(2, config['in_channels'], 10, 9, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    _assert_same(config, plain, fused, x)


@pytest.mark.parametrize('kind', ['RedNet', 'CedNet'])
def test_backbone_equals_unfused_in_float64(kind):
    torch.manual_seed(0)
    config = dict(type=f'mmcontext.{kind}', depth=26, base_channels=32, out_indices=(0, 1, 2, 3))
    plain = MODELS.build(copy.deepcopy(config)).double()
    fused = MODELS.build({**config, 'layer_cfg': dict(fused=True)}).double()
    assert all(m.fused for m in fused.modules() if hasattr(m, 'kernel_groups'))
    _assert_same(config, plain, fused, torch.randn(2, 3, 32, 48, dtype=torch.float64))


def test_training_saves_less():
    """In a narrow CedNet the fused variant keeps less than 0.85 of the activations."""
    saved = {}
    for fused in (False, True):
        torch.manual_seed(0)
        model = MODELS.build(dict(type='mmcontext.CedNet', depth=26, base_channels=32,
                                  layer_cfg=dict(fused=fused)))
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def keep(tensor, storages=storages, parameters=parameters):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            outputs = model(torch.randn(1, 3, 64, 64))
        saved[fused] = sum(storages.values())
        del outputs
    assert saved[True] < 0.85 * saved[False]  # the kernels are not saved
