"""The cached kernel of a continuous convolution, and what causes it to be sampled again."""
import copy
import io
import pickle

import pytest
import torch
import torch.nn as nn
from continuous_layers import build, fresh_output, sample

from mmcontext import layers
from mmcontext.ops import native_library


@pytest.fixture(params=['CKConv', 'SeparableFlexConv', 'CKConv-without-library'])
def cached(request, monkeypatch):
    if request.param.endswith('-without-library'):
        monkeypatch.setattr(native_library, 'UNAVAILABLE', 'not compiled')
    layer = build(request.param.split('-')[0], 1, 4, 4, 9).eval()
    x = sample(1)
    with torch.no_grad():
        layer(x)
    return layer, x


def counted(layer, x):
    """The output, and how often the kernel was sampled for it."""
    kernel = layer.kernel
    calls, weigh = [], kernel._weigh
    kernel._weigh = lambda *args: calls.append(1) or weigh(*args)
    y = layer(x)
    del kernel._weigh
    return y, len(calls)


@torch.no_grad()
def test_unchanged_layer_samples_once(cached):
    layer, x = cached
    y, calls = counted(layer, x)
    assert calls == 0 and torch.equal(y, fresh_output(layer, x))


def test_gradients_bypass_the_cache(cached):
    layer, x = cached
    y, calls = counted(layer, x)
    assert calls == 1
    y.sum().backward()
    assert layer.kernel_net.output_linear.weight.grad is not None


def test_frozen_layers_are_cached_with_gradients_on(cached):
    layer, x = cached
    x.requires_grad_()
    layer.requires_grad_(False)
    layer(x)
    y, calls = counted(layer, x)
    assert calls == 0
    y.sum().backward()
    assert x.grad is not None


def in_place(layer):
    layer.kernel_net.output_linear.weight.mul_(2)


def through_data(layer):
    # As in exponential moving averages; the version counter does not change.
    weight = layer.kernel_net.output_linear.weight
    version = weight._version
    weight.data.copy_(weight.data * 2)
    assert weight._version == version


def new_data(layer):
    layer.kernel_net.output_linear.weight.data = layer.kernel_net.output_linear.weight.data * 2


def new_parameter(layer):
    layer.kernel_net.output_linear.weight = nn.Parameter(
        layer.kernel_net.output_linear.weight * 2)


def single_element(layer):
    layer.kernel_net.filters[1].mu[2, 0] += 0.5


def load_state_dict(layer):
    layer.load_state_dict({k: v * 2 if v.is_floating_point() else v
                           for k, v in layer.state_dict().items()})


def optimizer_step(layer):
    layer.requires_grad_()
    with torch.enable_grad():
        layer(sample(1)).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def train_and_back(layer):
    layer.train()
    layer.kernel_net.output_linear.weight.data.mul_(2)
    layer.eval()


@pytest.mark.parametrize('change', [
    in_place, through_data, new_data, new_parameter, single_element, load_state_dict,
    optimizer_step, train_and_back])
@torch.no_grad()
def test_changed_parameters_are_noticed(cached, change):
    layer, x = cached
    before = layer(x)
    change(layer)
    after, calls = counted(layer, x)
    assert calls == 1
    assert not torch.allclose(after, before)
    assert torch.equal(after, fresh_output(layer, x))
    assert counted(layer, x)[1] == 0


@pytest.mark.skipif(bool(native_library.UNAVAILABLE), reason='installed without a compiler')
def test_comparison_of_values():
    """Gaps in memory, NaN and tensors of other sizes and dtypes."""
    same = torch.ops.mmcontext_native.same_values
    tensors = [torch.randn(3, 4).t(), torch.tensor(float('nan')), torch.zeros(0), torch.arange(3)]
    noted = torch.cat([t.reshape(-1) for t in tensors])
    assert same(tensors, noted)
    assert not same(tensors[:3], noted) and not same([*tensors, noted], noted)
    for index in (0, 1, 3):
        changed = [t.clone() for t in tensors]
        changed[index].select(-1, -1).fill_(7) if changed[index].dim() else changed[1].fill_(7)
        assert not same(changed, noted)


@torch.no_grad()
def test_changed_mask_is_noticed():
    layer = build('SeparableFlexConv', 1, 4, 4, 21).eval()
    x = sample(1)
    before = layer(x)
    for tensor, value in ((layer.mask_width, 0.3), (layer.mask_mean, 0.1),
                          (layer.mask_threshold, 0.5)):
        tensor.data.fill_(value)
        after = layer(x)
        assert not torch.allclose(after, before)
        assert torch.equal(after, fresh_output(layer, x))
        before = after


@torch.no_grad()
def test_changed_size_is_noticed(cached):
    layer, x = cached
    layer.load_state_dict({**layer.state_dict(), 'kernel.train_length': torch.tensor([13])})
    y = layer(x)
    assert layer.kernel.length == (13, ) and torch.equal(y, fresh_output(layer, x))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_changed_dtype_is_noticed(cached, dtype):
    layer, x = cached
    y, calls = counted(layer.to(dtype), x.to(dtype))
    assert calls == 1 and y.dtype == dtype
    assert torch.equal(y, fresh_output(layer, x.to(dtype)))
    y, calls = counted(layer.double(), x)
    assert calls == 1 and torch.equal(y, fresh_output(layer, x))


@torch.no_grad()
def test_changed_device_is_noticed(cached):
    layer, x = cached
    device = 'cuda' if torch.cuda.is_available() else 'meta'
    assert layer.to(device)(x.to(device)).device.type == device
    if device == 'meta':
        layer.to_empty(device='cpu')
        for p in layer.parameters():
            nn.init.normal_(p)
        nn.init.constant_(layer.train_length, 9)
        nn.init.constant_(layer.kernel.initialized, True)
        for name, value in (('mask_mean', 0.), ('mask_threshold', 0.1), ('mask_width', 0.2)):
            if hasattr(layer, name):
                nn.init.constant_(getattr(layer, name), value)
    else:
        layer.cpu()
    assert torch.equal(layer(x), fresh_output(layer, x))


def test_train_mode_never_uses_the_cache(cached):
    layer, x = cached
    layer.train()
    assert counted(layer, x)[1] == 1
    with torch.no_grad():
        assert counted(layer, x)[1] == 1


def test_inference_mode_leaves_nothing_unusable_behind(cached):
    layer, x = cached
    with torch.inference_mode():
        layer(x)
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None


def test_training_after_inference_mode():
    layer, x = layers.CKConv1d(2, 2, 7).eval(), torch.randn(1, 2, 9)
    with torch.inference_mode():
        layer(x)
    layer.train()(x).sum().backward()


def test_a_run_without_values_leaves_nothing_behind():
    with torch.device('meta'):
        layers.CKConv1d(2, 2, 7)(torch.zeros(1, 2, 9))
    assert layers.CKConv1d(2, 2, 7)(torch.zeros(1, 2, 9)).isfinite().all()


@torch.no_grad()
def test_cache_stays_out_of_copies_and_checkpoints(cached):
    layer, x = cached
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not other.kernel._kept and torch.equal(other(x), y)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    assert not any('kept' in key for key in layer.state_dict())
