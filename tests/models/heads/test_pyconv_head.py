"""PyConvSegNet's head against its definition written with torch's functions."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.structures import PixelData
from tolerances import DOUBLE_LAYERS, assert_close

pytest.importorskip('mmseg')
from mmseg.structures import SegDataSample  # noqa: E402

from mmcontext.registry import MODELS  # noqa: E402


def build(**kwargs):
    cfg = dict(
        type='mmcontext.PyConvHead',
        in_channels=256,
        in_index=0,
        channels=8,
        context_channels=64,
        num_classes=5,
        norm_cfg=dict(type='BN'),
        dropout_ratio=0.)
    torch.manual_seed(0)
    head = MODELS.build({**cfg, **kwargs})
    for name, value in head.state_dict().items():
        if name.endswith('running_var') or value.dim() == 1 and name.endswith('weight'):
            nn.init.uniform_(value, 0.5, 1.5)
        elif name.endswith(('running_mean', 'bias')):
            nn.init.normal_(value, std=0.1)
    return head.double()


def sample(labels):
    data_sample = SegDataSample(metainfo=dict(img_path='scene.png', img_shape=labels.shape[-2:]))
    data_sample.gt_sem_seg = PixelData(data=labels)
    return data_sample


def norm_relu(x, norm):
    """Batch norm and ReLU from the definition; batch statistics if ``norm`` is training."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)

    def column(v):
        return v[None, :, None, None]
    x = (x - column(mean)) / column(var + norm.eps).sqrt()
    return (x * column(norm.weight) + column(norm.bias)).clamp(min=0)


def branch(x, layers):
    reduce, pyramid, expand = layers
    x = norm_relu(F.conv2d(x, reduce.conv.weight), reduce.bn)
    levels = list(pyramid.conv.parameters())
    assert [tuple(w.shape[2:]) for w in levels] == [(3, 3), (5, 5), (7, 7), (9, 9)]
    assert [x.shape[1] // w.shape[1] for w in levels] == [1, 4, 8, 16]
    x = torch.cat([
        F.conv2d(x, w, padding=w.shape[-1] // 2, groups=x.shape[1] // w.shape[1])
        for w in levels
    ], 1)
    return norm_relu(F.conv2d(norm_relu(x, pyramid.bn), expand.conv.weight), expand.bn)


def reference(head, x):
    context = branch(F.adaptive_avg_pool2d(x, 9), head.global_context)
    context = F.interpolate(context, x.shape[2:], mode='bilinear', align_corners=True)
    x = torch.cat([branch(x, head.local_context), context], 1)
    x = norm_relu(F.conv2d(x, head.merge.conv.weight, padding=1), head.merge.bn)
    return F.conv2d(x, head.conv_seg.weight, head.conv_seg.bias)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('size', [(13, 10), (4, 5)], ids=str)
def test_forward_is_the_definition(size, training):
    head = build().train(training)
    x = torch.randn(2, 256, *size, dtype=torch.float64)
    expected = reference(head, x)
    assert_close(head([x]), expected, DOUBLE_LAYERS)


def test_upsampled_logits_meet_the_grid_of_the_authors_sizes():
    """For sides of 8 n + 1 every 8th pixel of the class map is a cell of the stride-8 logits."""
    head = build().eval()
    x = torch.randn(1, 256, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        coarse = head([x])
        fine = head.predict([x], [dict(img_shape=(41, 33))], {})
        other = head.predict([x], [dict(img_shape=(44, 37))], {})
    assert_close(fine[..., ::8, ::8], coarse, DOUBLE_LAYERS)
    assert other.shape == (1, 5, 44, 37)
    assert_close(other[..., [0, 0, -1, -1], [0, -1, 0, -1]],
                 coarse[..., [0, 0, -1, -1], [0, -1, 0, -1]])


def test_single_cell_feature_map():
    head = build().eval()
    assert head([torch.randn(1, 256, 1, 1, dtype=torch.float64)]).shape == (1, 5, 1, 1)


def test_every_parameter_gets_a_gradient():
    head = build().train()
    head([torch.randn(2, 256, 5, 6, dtype=torch.float64)]).pow(2).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_other_operator_in_the_branches():
    head = build(context_cfg=dict(type='mmcontext.CoConv2d', levels=2)).eval()
    names = {type(m).__name__ for m in head.modules()}
    assert 'CoConv2d' in names and 'PyConv2d' not in names
    assert head([torch.randn(1, 256, 5, 6, dtype=torch.float64)]).shape == (1, 5, 5, 6)


def test_reduction_must_divide():
    with pytest.raises(ValueError, match='reduction=3 .* in_channels=256'):
        build(reduction=3)


def test_pool_size_must_be_positive():
    with pytest.raises(ValueError, match='pool_size must be an int or 2 ints, at least 1, got 0'):
        build(pool_size=0)


@pytest.mark.parametrize('avg_non_ignore', [True, False])
def test_loss_ignores_and_is_never_nan(avg_non_ignore):
    head = build(loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=avg_non_ignore))
    head.train()
    x = torch.randn(2, 256, 3, 3, dtype=torch.float64)
    logits = head([x])
    labels = torch.randint(0, 5, (2, 1, 17, 17))
    labels[:, :, :6] = 255
    loss = head.loss_by_feat(logits, [sample(v) for v in labels])['loss_ce']
    scores = F.interpolate(logits, (17, 17), mode='bilinear', align_corners=True)
    expected = F.cross_entropy(scores, labels[:, 0], ignore_index=255)
    if not avg_non_ignore:
        expected = expected * 11 / 17
    assert_close(loss, expected, rtol=1e-9, atol=0)  # float64

    nothing = head.loss_by_feat(logits, [sample(v) for v in torch.full_like(labels, 255)])
    assert nothing['loss_ce'] == 0
    nothing['loss_ce'].backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize('label', [5, -1, 254])
def test_label_out_of_range_names_image_and_label(label):
    head = build()
    labels = torch.zeros(2, 1, 9, 9, dtype=torch.long)
    labels[1, 0, 3, 3] = label
    samples = [sample(v) for v in labels]
    samples[1].set_metainfo(dict(img_path='wrong.png'))
    with pytest.raises(ValueError, match=rf"'wrong.png' holds \[{label}\].* 0 to 4 "):
        head.loss([torch.randn(2, 256, 2, 2, dtype=torch.float64)], samples, {})


def test_sample_without_label_map():
    unlabelled = SegDataSample(metainfo=dict(img_path='bare.png'))
    with pytest.raises(ValueError, match="'bare.png' has no gt_sem_seg"):
        build().loss([torch.randn(2, 256, 2, 2, dtype=torch.float64)], [unlabelled] * 2, {})
