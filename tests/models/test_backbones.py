import pytest
import torch
from common import MILLIONS
from mmengine.registry import MODELS
from tolerances import assert_close
from torch.nn.modules.batchnorm import _BatchNorm

FAMILIES = {
    'CoResNet': dict(depth=50, base_channels=16),
    'PyConvResNet': dict(depth=18),
    'PyConvResNet-50': dict(depth=50),
    'PyConvHGResNet': dict(depth=50, base_channels=64),
    'CoTNet': dict(depth=50, base_channels=16),
    'CoTNeXt': dict(depth=50, base_channels=64),
    'SECoTNetD': dict(depth=50, base_channels=16),
    'SECoTNetD-152': dict(depth=152, base_channels=16),
    'RedNet': dict(depth=26, base_channels=32),
    'CedNet': dict(depth=26, base_channels=32),
}
# One small network of each family, for features of the common trunk.
SMALL = ['CoResNet', 'PyConvResNet', 'CoTNet', 'SECoTNetD', 'CedNet']


def build(family, **kwargs):
    return MODELS.build(
        dict(type=f'mmcontext.{family.split("-")[0]}', **{**FAMILIES[family], **kwargs}))


@pytest.mark.parametrize('family, depth', MILLIONS)
def test_published_parameters(family, depth):
    with torch.device('meta'):
        backbone = MODELS.build(dict(type=f'mmcontext.{family}', depth=depth))
    features = 512 if depth in (18, 34) else 2048
    count = sum(p.numel() for p in backbone.parameters()) + features * 1000 + 1000
    assert round(count / 1e6, 3) == MILLIONS[family, depth]


@pytest.mark.parametrize('family', FAMILIES)
def test_four_levels_of_an_odd_image_and_a_gradient_everywhere(family):
    backbone = build(family, out_indices=(0, 1, 2, 3))
    backbone.init_weights()
    backbone.train()
    outputs = backbone(torch.randn(2, 3, 65, 49))
    assert [tuple(o.shape[-2:]) for o in outputs] == [(17, 13), (9, 7), (5, 4), (3, 2)]
    # A zero last norm blocks the gradient of the branch, as intended.
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    outputs = backbone(torch.randn(2, 3, 65, 49))
    sum(o.square().mean() for o in outputs).backward()
    silent = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize('family', SMALL)
@pytest.mark.parametrize('output_stride', [8, 16])
def test_output_stride_dilates_the_last_stages(family, output_stride):
    backbone = build(family, output_stride=output_stride, out_indices=(2, 3)).eval()
    third, fourth = backbone(torch.randn(1, 3, 64, 64))
    assert fourth.shape[-1] == 64 // output_stride
    assert third.shape[-1] == 64 // min(output_stride, 16)
    dilations = {m.dilation for m in backbone.layer4.modules() if hasattr(m, 'kernel_groups')}
    assert not dilations or dilations == {(4, 4) if output_stride == 8 else (2, 2)}


def test_dilated_pyconvresnet_is_the_one_of_pyconvsegnet():
    backbone = build('PyConvResNet-50', output_stride=8)
    for block in backbone.layer3:
        assert [c.dilation for c in block.spatial.convs] == [(2, 2), (2, 2)]
        assert [c.padding for c in block.spatial.convs] == [(2, 2), (4, 4)]
    for block in backbone.layer4:
        assert [c.dilation for c in block.spatial.convs] == [(4, 4)]
    assert backbone.layer3[0].shortcut[0].stride == 1


@pytest.mark.parametrize('family', SMALL)
def test_frozen_stages_and_norm_eval_stay_fixed(family):
    backbone = build(family, frozen_stages=1, norm_eval=True)
    frozen = {n: p for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(('stem.', 'layer1.')) for n in frozen)
    assert set(frozen) == {n for n, _ in backbone.named_parameters()
                           if n.startswith(('stem.', 'layer1.'))}
    statistics = {n: b.clone() for n, b in backbone.named_buffers()}
    backbone.train()
    backbone(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(b, statistics[n]) for n, b in backbone.named_buffers())


@pytest.mark.parametrize('family', SMALL)
def test_checkpointing_changes_no_gradient(family):
    backbone = build(family, out_indices=(3, )).double()
    again = build(family, out_indices=(3, ), with_cp=True).double()
    again.load_state_dict(backbone.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    for module in (backbone, again):
        module.eval()
        module(x)[0].square().mean().backward()
    for (name, a), b in zip(backbone.named_parameters(), again.parameters()):
        assert_close(a.grad, b.grad, msg=name)


def test_drop_path_grows_linearly():
    backbone = build('CedNet', drop_path_rate=0.35)
    rates = [getattr(block.drop_path, 'drop_prob', 0.)
             for name in backbone.layer_names for block in getattr(backbone, name)]
    assert rates == pytest.approx([0.05 * i for i in range(8)])


def test_zero_init_residual_makes_a_block_its_shortcut():
    backbone = build('CoTNet')
    backbone.init_weights()
    assert all(not block.norm3.weight.any() for block in backbone.layer3)
    backbone = build('CoResNet', zero_init_residual=True)
    backbone.init_weights()
    assert not backbone.layer3[0].norm3.weight.any()
    assert backbone.layer3[-1].norm3.weight.all(), 'after the addition it must not be zero'


def test_pretrained_with_prefix(tmp_path):
    source = build('CedNet')
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save({'state_dict': {**state, 'head.fc.weight': torch.zeros(2, 2)}},
               tmp_path / 'c.pth')
    target = build('CedNet', init_cfg=dict(type='Pretrained', prefix='backbone.',
                                           checkpoint=str(tmp_path / 'c.pth')))
    target.init_weights()
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values()):
        assert torch.equal(a, b), name


def test_layer_cfg_reaches_the_spatial_layers():
    backbone = build('RedNet', layer_cfg=dict(kernel_size=5))
    assert backbone.layer1[0].spatial.kernel_size == (5, 5)


@pytest.mark.parametrize('arguments, message', [
    (dict(depth=51), r'depth of CedNet must be one of \[26, 38, 50, 101, 152\], got 51'),
    (dict(out_indices=(4, )), 'out_indices must be stages 0 to 3'),
    (dict(frozen_stages=5), 'frozen_stages must be -1 to 4'),
    (dict(output_stride=4), 'output_stride must be one of'),
    (dict(output_stride=8, strides=(1, 2, 2, 2)), 'excludes strides and dilations'),
    (dict(strides=(1, 2)), 'strides must be 4 positive integers'),
    (dict(drop_path_rate=1.0), 'drop_path_rate must be in'),
    (dict(base_channels=24), 'not divisible by'),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build('CedNet', **arguments)
