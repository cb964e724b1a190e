"""Common uses of a backbone, whatever its operator: every family with every one of them.

The networks have one block per stage (two in the first) and are as narrow as their groups allow.
"""
import copy
import io
import warnings

import pytest
import torch
import torch.nn.utils.prune as prune
from mmcv.cnn import fuse_conv_bn
from mmengine.model import revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.registry import MODELS
from tolerances import assert_close
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmcontext.layers.ckconv import CKConvNd

WIDTHS = {'CoResNet': 16, 'PyConvResNet': 16, 'PyConvHGResNet': 16, 'CoTNet': 16, 'CoTNeXt': 32,
          'SECoTNetD': 16, 'RedNet': 32, 'CedNet': 32, 'CKResNet': 8}
GROUPS = {'PyConvResNet': ((1, 2, 2, 4), (1, 2, 2), (1, 2), (1, )),
          'PyConvHGResNet': ((2, 2, 2, 2), (2, 4, 4), (2, 4), (2, ))}
KERNEL = dict(type='MAGNet', hidden_channels=8, omega_0=100.)
SMALL = {family: type(f'Small{family}', (MODELS.get(f'mmcontext.{family}'), ),
                      dict(arch_settings={50: (2, 1, 1, 1)}, pyramid_groups=GROUPS.get(family),
                           __module__=__name__))
         for family in WIDTHS}
globals().update({kind.__name__: kind for kind in SMALL.values()})  # where pickle looks
LINEAR = (nn.modules.conv._ConvNd, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def build(family, **options):
    """A small backbone of the family; in CCNN the blocks correspond to the others' stages."""
    torch.manual_seed(0)
    if family == 'CCNN':
        stages = options.pop('num_stages', 4)
        return MODELS.build(dict(
            type='mmcontext.CCNN', channels=8, num_blocks=stages, pools=range(stages),
            conv_cfg=dict(type='SeparableFlexConv2d', kernel_size=9, mask_cfg=dict(init=0.3),
                          kernel_cfg=KERNEL), **options))
    small = SMALL[family]
    if family == 'CKResNet':
        options.setdefault('kernel_cfg', KERNEL)
    return small(50, base_channels=WIDTHS[family], **options)


def image(batch=2, size=64, seed=1):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def step(model, x):
    """A training step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    y = model(x)[-1]
    assert y.isfinite().all()
    y.square().mean().backward()
    optimizer.step()


def seen(model, x):
    """The model in eval mode, with its continuous kernels fixed."""
    model.eval()
    with torch.no_grad():
        model(x)
    return model


def assert_same(actual, expected, tolerance=1e-4):  # float32, a whole network
    scale = max(expected.abs().max().item(), 1e-3)
    assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def leaves(model, kinds):
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def one_image_a_process(make):
    model = make().train()
    step(model, image(1))
    step(model, image(1))
    assert all(value.isfinite().all() for value in model.state_dict().values())


def one_row_of_pixels(make):
    model = make().train()
    if hasattr(model, 'pools'):
        model.pools = ()  # a pool of 2 pixels does not accept a single row
    step(model, image(1)[:, :, :1])


def instance_norm(make):
    model = make(norm_cfg=dict(type='IN', affine=True))
    step(model.train(), image())
    assert model.eval()(image(1))[-1].isfinite().all()


def group_norm_of_32(make):
    model = make(norm_cfg=dict(type='GN', num_groups=32))
    step(model.train(), image(1))
    with torch.no_grad():
        expected = [y.detach() for y in seen(model, image(1))(image(1))]
    assert_same(model(image(1))[-1].detach(), expected[-1])


def forward_hooks(make):
    """Every convolution, linear layer and norm is called, and its output does not change."""
    for training in (True, False):
        model, kept = seen(make(), image()).train(training), {}
        for name, module in leaves(model, LINEAR + NORMS).items():
            module.register_forward_hook(
                lambda _, __, y, name=name: kept.update({name: (y, y.detach().clone())}))
        with torch.set_grad_enabled(training):
            model(image())
        assert set(kept) == set(leaves(model, LINEAR + NORMS))
        changed = [name for name, (now, then) in kept.items() if not torch.equal(now, then)]
        assert not changed, changed


def backward_hooks(make):
    model, ran = make().train(), set()
    for name, module in leaves(model, LINEAR + NORMS).items():
        module.register_full_backward_hook(lambda *_, name=name: ran.add(name))
    step(model, image())
    assert ran == set(leaves(model, LINEAR + NORMS))


def pruning(make):
    model = make().train()
    for module in leaves(model, LINEAR).values():
        prune.l1_unstructured(module, 'weight', amount=0.5)
    step(model, image())
    step(model, image())
    pruned = seen(model, image())
    with torch.no_grad():
        y = pruned(image())[-1]
        for module in leaves(pruned, LINEAR).values():
            assert not module.weight[module.weight_mask == 0].any()
            prune.remove(module, 'weight')
        assert_same(pruned(image())[-1], y)


def spectral_norm_on_convolutions(make):
    model = make().train()
    for module in leaves(model, LINEAR).values():
        spectral_norm(module)
    step(model, image())
    step(model, image())
    seen(model, image())
    with torch.no_grad():
        y = model(image())[-1]
        for module in leaves(model, LINEAR).values():
            parametrize.remove_parametrizations(module, 'weight')
        assert_same(model(image())[-1], y)


class _Adapter(nn.Module):
    """The replacement of a layer by adapters such as LoRA."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) * 0.5


def convolutions_replaced_by_adapters(make):
    model = seen(make(), image())
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d:
                module.add_module(name, _Adapter(child))
    with torch.no_grad():
        y = model(image())[-1]
        for module in leaves(model, _Adapter).values():
            module.layer.weight *= 0.5
            module.forward = module.layer.forward
            if module.layer.bias is not None:
                module.layer.bias *= 0.5
        assert_same(model(image())[-1], y)


def fx_trace(make):
    model = make()
    for training in (True, False):
        seen(model, image()).train(training)
        if training:
            expected = copy.deepcopy(model)(image())
            step(torch.fx.symbolic_trace(copy.deepcopy(model)), image())
        else:
            expected = model(image())
        graph = torch.fx.symbolic_trace(model)
        assert_same(graph(image())[-1], expected[-1])


def efficient_conv_bn_eval(make):
    model = nn.Module()
    model.backbone = seen(make(), image())
    expected = model.backbone(image(3))[-1]
    turn_on_efficient_conv_bn_eval(model, ['backbone'])
    y = model.backbone(image(3))[-1]
    assert_same(y, expected)
    step(model.backbone.train(), image())


def torchvision_feature_extractor(make):
    from torchvision.models.feature_extraction import create_feature_extractor
    model = seen(make(out_indices=(1, 3)), image())
    node = 'blocks.1' if hasattr(model, 'blocks') else 'layer2'
    extractor = create_feature_extractor(model, {node: 'middle'})
    expected = model(image())[0]
    got = extractor(image())['middle']
    assert_same(nn.functional.max_pool2d(got, 2) if node == 'blocks.1' else got, expected)


def fx_quantisation(make):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
    model = seen(make(), image())
    with torch.no_grad():
        expected = model(image())[-1]
        prepared = prepare_fx(model, get_default_qconfig_mapping('fbgemm'), (image(), ))
        prepared(image())
        y = convert_fx(prepared)(image())[-1]
    assert (y - expected).norm() < 0.5 * expected.norm()  # int8 through all layers


def jit_trace(make):
    model = make().eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, image())
        assert_same(traced(image(seed=2))[-1], model(image(seed=2))[-1])


def three_stages(make):
    model = make(num_stages=3, out_indices=(2, ))
    maps = model(image())
    assert len(maps) == 1
    for options in (dict(num_stages=3, out_indices=(3, )), dict(num_stages=2, frozen_stages=3)):
        with pytest.raises((ValueError, AssertionError)):  # the latter in stock backbones
            make(**options)


def layer_decay(make):
    pytest.importorskip('mmpretrain')
    from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
    model = nn.Module()
    model.backbone, model.head = make(), nn.Linear(2, 2)
    model.get_layer_depth = lambda name: model.backbone.get_layer_depth(name, 'backbone.')
    optimizer = dict(type='SGD', lr=1., weight_decay=0.1)
    wrapper = LearningRateDecayOptimWrapperConstructor(
        dict(optimizer=optimizer), dict(layer_decay_rate=0.5))(model)
    rates = {group['param_name']: group['lr'] for group in wrapper.optimizer.param_groups}
    assert rates['head.weight'] == 1.
    ordered = [rates[f'backbone.{name}'] for name, _ in model.backbone.named_parameters()
               if name.startswith(('layer', 'blocks'))]
    assert ordered == sorted(ordered) and ordered[-1] == 0.5
    assert len(set(rates.values())) > 3


def averaging(make):
    for options in (dict(use_buffers=True),
                    dict(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9))):
        model = seen(make(), image())
        average = AveragedModel(model, **options).eval()
        for _ in range(3):
            average.update_parameters(model)
        assert_same(average(image())[-1], model(image())[-1])


def per_sample_gradients(make):
    model = seen(make(), image())
    if torch.__version__ < '2.2' and any(isinstance(m, CKConvNd) for m in model.modules()):
        pytest.skip('torch 2.1 cannot read a mask in torch.func')
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x[None], ))[-1].square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, image())
    loss(dict(model.named_parameters()), image()[1]).backward()
    for name, parameter in model.named_parameters():
        # float32, back through a whole network, with other kernels under vmap.
        assert_same(gradients[name][1], parameter.grad, 1e-2)


def frozen_stages(make):
    model = make(frozen_stages=2, norm_eval=True)
    seen(model, image())
    state = copy.deepcopy(model.state_dict())
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed and any(p.requires_grad for p in model.parameters())
    step(model.train(), image())
    moved = {name for name, value in model.state_dict().items()
             if not torch.equal(value, state[name])}
    assert moved and moved.isdisjoint(fixed) and moved <= set(dict(model.named_parameters()))


def checkpointing(make):
    model, again = make(), make(with_cp=True)
    seen(model, image()), again.load_state_dict(model.state_dict())
    for network in (model, again):
        network.train()(image().requires_grad_())[-1].square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), again.parameters()):
        # float32, back through a whole network.
        assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5, msg=name)


def mmengine_checkpointing(make):
    from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
    model = make().train()
    turn_on_activation_checkpointing(
        model, [name for name in leaves(model, nn.Conv2d) if name.startswith(('layer', 'block'))])
    step(model, image())
    assert all(p.grad is not None for p in model.parameters())


def drop_path(make):
    step(make(drop_path_rate=0.3).train(), image())


def all_levels(make):
    assert len(make(out_indices=(0, 1, 2, 3))(image())) == 4


def sync_batch_norm_and_back(make):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make())
    step(model.train(), image(1))
    seen(revert_sync_batchnorm(model), image(1))


def norms_without_running_statistics(make):
    model = make(norm_cfg=dict(type='BN', track_running_stats=False)).train()
    step(model, image(1))
    assert model.eval()(image(1))[-1].isfinite().all()


def folded_norms(make):
    model = seen(make(), image())
    with torch.no_grad():
        expected = model(image())[-1]
        assert_same(fuse_conv_bn(copy.deepcopy(model))(image())[-1], expected)


def pickled(make):
    model, file = seen(make(), image()), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        expected = model(image())[-1]
        for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert torch.equal(other(image())[-1], expected)


THINGS = [one_image_a_process, one_row_of_pixels, instance_norm, group_norm_of_32,
          forward_hooks, backward_hooks, pruning, spectral_norm_on_convolutions,
          convolutions_replaced_by_adapters, fx_trace, efficient_conv_bn_eval,
          torchvision_feature_extractor, fx_quantisation, jit_trace, three_stages, layer_decay,
          averaging, per_sample_gradients, frozen_stages, checkpointing, mmengine_checkpointing,
          drop_path, all_levels, sync_batch_norm_and_back, norms_without_running_statistics,
          folded_norms, pickled]
SLOW = {fx_quantisation: ('CoTNet', 'CedNet', 'CKResNet')}


@pytest.mark.parametrize('thing, family', [
    (thing, family) for thing in THINGS for family in SLOW.get(thing, (*WIDTHS, 'CCNN'))],
    ids=lambda value: getattr(value, '__name__', value))
def test_thing(thing, family):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        thing(lambda **options: build(family, **options))
