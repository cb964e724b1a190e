import pytest
import torch
import torch.nn as nn
from mmengine.registry import MODELS, init_default_scope
from tolerances import assert_close

from mmcontext.layers.ckconv import CKConvNd
from mmcontext.models.backbones import CCNN, CKResNet

KERNEL = dict(hidden_channels=4, num_layers=2, omega_0=3.)


def conv_cfg(dim, **kwargs):
    return dict(dict(type=f'mmcontext.SeparableFlexConv{dim}d', kernel_size=5, kernel_cfg=KERNEL,
                     mask_cfg=dict(init=0.5)), **kwargs)


def ccnn(dim=1, **kwargs):
    return CCNN(**{**dict(in_channels=2, channels=6, num_blocks=2, conv_cfg=conv_cfg(dim)),
                   **kwargs})


@pytest.mark.parametrize('block', ['s4', 'resnet', 'preact', 'tcn'])
@pytest.mark.parametrize('dim', [1, 2, 3])
def test_blocks_in_every_dimension(block, dim):
    net = ccnn(dim, block=block, drop_rate=0.1, input_drop_rate=0.1)
    (y, ) = net(torch.randn(2, 2, *(8, ) * dim))
    assert y.shape == (2, 6, *(8, ) * dim)
    y.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_s4_block_is_the_written_order():
    net = ccnn(width_factors=(2, 1)).double()
    block = net.blocks[0]
    x = torch.randn(2, 6, 9, dtype=torch.float64)
    gelu = nn.functional.gelu
    expected = gelu(block.linear1(gelu(block.conv1(block.norm1(x))))) + block.shortcut(x)
    assert_close(block(x), expected)
    assert isinstance(block.shortcut, nn.Conv1d) and expected.shape[1] == 12


def test_post_norm_has_no_norm_at_the_end():
    net = ccnn(pre_norm=False)
    assert isinstance(net.out_norm, nn.Identity)
    x = torch.randn(2, 6, 9)
    block = net.blocks[0].eval()
    gelu = nn.functional.gelu
    assert_close(block(x), block.norm1(
        gelu(block.linear1(gelu(block.conv1(x)))) + x))


def test_pools_follow_their_blocks():
    net = ccnn(2, pools=(0, ), pool_size=2)
    assert net(torch.randn(1, 2, 12, 8))[0].shape == (1, 6, 6, 4)


@pytest.mark.parametrize('drop_type, kind', [('channel', nn.Dropout1d), ('element', nn.Dropout)])
def test_kind_of_dropout(drop_type, kind):
    net = ccnn(drop_type=drop_type, drop_rate=0.3, input_drop_rate=0.2)
    assert type(net.blocks[0].dropout) is kind and net.blocks[0].dropout.p == 0.3
    assert type(net.input_dropout) is nn.Dropout and net.input_dropout.p == 0.2


def test_without_norms():
    net = ccnn(norm_cfg=None)
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in net.modules())
    assert net(torch.randn(1, 2, 8))[0].isfinite().all()


@pytest.mark.parametrize('arguments, message', [
    (dict(block='vgg'), 'block must be one of'),
    (dict(block='tcn', pre_norm=False), "for 's4' blocks only"),
    (dict(drop_type='row'), "drop_type must be 'channel'"),
    (dict(width_factors=(1, )), 'width_factors must have 2 entries'),
    (dict(num_blocks=-1), 'num_blocks must not be negative, got -1'),
    (dict(pools=(2, )), 'pools must be block numbers below 2'),
])
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ccnn(**arguments)


def test_one_network_takes_other_lengths():
    net = ccnn(1, conv_cfg=conv_cfg(1, kernel_size='same', causal=True)).eval()
    net(torch.randn(1, 2, 16))
    for length in (3, 16, 40):
        assert net(torch.randn(1, 2, length))[0].shape == (1, 6, length)


def test_classifier_in_mmpretrain():
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='mmcontext.CCNN', in_channels=2, channels=6, num_blocks=1,
                      conv_cfg=conv_cfg(1)),
        neck=dict(type='GlobalAveragePooling', dim=1),
        head=dict(type='mmcontext.BinaryClsHead', in_channels=6, cal_acc=True)))
    from mmpretrain.structures import DataSample
    samples = [DataSample().set_gt_label(i % 2) for i in range(4)]
    x = torch.randn(4, 2, 12)
    losses = model(x, samples, mode='loss')
    logits = model.head(model.extract_feat(x)).squeeze(1)
    labels = torch.tensor([0., 1., 0., 1.])
    expected = nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert_close(losses['loss'], expected)
    assert losses['accuracy_top-1'].item() == pytest.approx(
        100 * ((logits > 0) == labels.bool()).float().mean().item())
    losses['loss'].backward()
    with torch.no_grad():
        model.eval()
        predictions = model(x, samples, mode='predict')
        scores = torch.sigmoid(model.head(model.extract_feat(x)).squeeze(1))
    for prediction, score in zip(predictions, scores):
        assert_close(prediction.pred_score, torch.stack([1 - score, score]))
        assert prediction.pred_label.item() == int(score > 0.5)
    with pytest.raises(ValueError, match=r'0 or 1, for BinaryClsHead, got \[0, 1, 0, 2\]'):
        model(x, samples[:3] + [DataSample().set_gt_label(2)], mode='loss')


@pytest.fixture(scope='module')
def ckresnet():
    torch.manual_seed(0)
    return CKResNet(26, base_channels=8, out_indices=(0, 1, 2, 3),
                    kernel_cfg=dict(type='MAGNet', hidden_channels=4, omega_0=10.))


@pytest.mark.parametrize('size', [(64, 64), (65, 97), (32, 33)])
def test_ckresnet_levels_at_any_size(ckresnet, size):
    maps = ckresnet(torch.randn(1, 3, *size))
    down = [tuple(-(-n // 2**(i + 2)) for n in size) for i in range(4)]
    assert [tuple(m.shape[1:]) for m in maps] == [(32 * 2**i, *down[i]) for i in range(4)]


def test_ckresnet_gradients_and_kernels(ckresnet):
    sum(m.square().mean() for m in ckresnet(torch.randn(1, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in ckresnet.parameters())
    layers = [m for m in ckresnet.modules() if isinstance(m, CKConvNd)]
    assert len(layers) == 8
    assert all(m.sample_kernel().shape[2:] == (5, 5) for m in layers)


def test_ckresnet_dilates_and_checkpoints():
    net = CKResNet(26, base_channels=8, output_stride=8, with_cp=True, frozen_stages=1,
                   layer_cfg=dict(kernel_cfg=dict(hidden_channels=4)))
    x = torch.randn(1, 3, 64, 64)
    (y, ) = net(x)
    assert y.shape[2:] == (8, 8)
    y.square().mean().backward()
    assert net.layer4[0].spatial.kernel_net.output_linear.weight.grad is not None
    assert net.layer1[0].spatial.kernel_net.output_linear.weight.grad is None
    net.zero_grad()
    assert net.layer4[0].spatial.dilation == (4, 4)


def test_ckresnet_mistakes_are_named():
    with pytest.raises(ValueError, match='kernel_sizes must have an entry for each'):
        CKResNet(50, kernel_sizes=(33, ))
    with pytest.raises(ValueError, match='depth of CKResNet'):
        CKResNet(34)


def test_flexconv_in_the_context_neck():
    from mmcontext.models.necks import ContextFPN
    neck = ContextFPN([8, 16], 12, 3, context_cfg=dict(
        type='mmcontext.SeparableFlexConv2d', kernel_size=9, kernel_cfg=KERNEL))
    maps = neck([torch.randn(1, 8, 16, 12), torch.randn(1, 16, 8, 6)])
    assert [tuple(m.shape[1:]) for m in maps] == [(12, 16, 12), (12, 8, 6), (12, 4, 3)]
