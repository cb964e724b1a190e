"""PyConvSegNet as a segmentor of mmsegmentation, with every test mode."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from tolerances import SAME, SINGLE_LAYERS, assert_close

pytest.importorskip('mmseg')
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

NORM = dict(type='BN')
NET = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[100.] * 3, std=[50.] * 3, bgr_to_rgb=True),
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=8,
        base_channels=16,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=NORM),
    decode_head=dict(
        type='mmcontext.PyConvHead',
        in_channels=128,
        in_index=3,
        channels=8,
        context_channels=64,
        reduction=2,
        num_classes=6,
        norm_cfg=NORM),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=64,
        in_index=2,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=6,
        norm_cfg=NORM,
        align_corners=True,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4)),
    test_cfg=dict(mode='whole'))


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.utils import register_all_modules
        register_all_modules(init_default_scope=False)
        yield


def build(**kwargs):
    torch.manual_seed(0)
    cfg = ConfigDict(copy.deepcopy(NET))
    cfg.update(kwargs)
    model = MODELS.build(cfg)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    return model.eval()


def samples(shape, count=1):
    meta = dict(ori_shape=shape, img_shape=shape, pad_shape=shape)
    return [SegDataSample(metainfo=meta) for _ in range(count)]


def logits(model, x):
    with torch.no_grad():
        out = model(x, samples(x.shape[2:], len(x)), mode='predict')
    return torch.stack([o.seg_logits.data for o in out])


def test_the_name_of_0_1_is_known():
    from mmseg.models.decode_heads import FCNHead
    own = MODELS.get('mmcontext.TorchInitFCNHead')
    assert MODELS.get('mmcontext.FCNHead') is own and MODELS.get('FCNHead') is FCNHead


@pytest.mark.parametrize('size', [(33, 41), (32, 40), (37, 50), (7, 9)], ids=str)
def test_whole_image_of_any_size(size):
    model = build()
    out = logits(model, torch.randn(2, 3, *size))
    assert out.shape == (2, 6, *size) and out.isfinite().all()


def test_sliding_window_averages_the_windows():
    x = torch.randn(1, 3, 33, 49)
    whole = build()
    slide = build(test_cfg=dict(mode='slide', crop_size=(33, 33), stride=(16, 16)))
    slide.load_state_dict(whole.state_dict())
    left, right = logits(whole, x[..., :33]), logits(whole, x[..., 16:])
    expected = F.pad(left, (0, 16)) + F.pad(right, (16, 0))
    expected[..., 16:33] /= 2
    assert_close(logits(slide, x), expected, SINGLE_LAYERS)


def test_window_larger_than_the_image_is_the_whole_image():
    x = torch.randn(1, 3, 30, 21)
    slide = build(test_cfg=dict(mode='slide', crop_size=(65, 65), stride=(43, 43)))
    assert_close(logits(slide, x), logits(build(), x), SAME)


@pytest.mark.parametrize('test_cfg', [
    dict(mode='whole'),
    dict(mode='slide', crop_size=(33, 33), stride=(22, 22)),
], ids=lambda c: c['mode'])
def test_multi_scale_and_flip(test_cfg):
    """mmseg's test-time augmentation equals the mean of the softmax maps computed by hand."""
    model = build(test_cfg=test_cfg)
    tta = MODELS.build(dict(type='SegTTAModel', module=model)).eval()
    scales, flips = (0.5, 1.0, 1.75), (0., 1.)
    pipeline = Compose([
        dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='Resize', scale_factor=s, keep_ratio=True) for s in scales],
                [dict(type='RandomFlip', prob=p, direction='horizontal') for p in flips],
                [dict(type='PackSegInputs')],
            ])
    ])
    image = np.random.RandomState(0).randint(0, 255, (37, 44, 3), dtype=np.uint8)
    image[:, :22] //= 8
    data = pipeline(
        dict(img=image, img_shape=(37, 44), ori_shape=(37, 44), img_path='scene.png',
             seg_fields=[]))
    with torch.no_grad():
        result = tta.test_step(pseudo_collate([data]))[0]

    total = 0
    for index, one in enumerate(data['inputs']):
        x = (one.flip(0).float()[None] - 100) / 50
        out = logits(model, x)
        if index % 2:
            plain = data['inputs'][index - 1]
            assert torch.equal(one, plain.flip(2))
            out = out.flip(3)
        out = F.interpolate(out, (37, 44), mode='bilinear', align_corners=True)
        total = total + out.softmax(1)
    expected = total[0].argmax(0)
    assert len(expected.unique()) > 1
    assert torch.equal(result.pred_sem_seg.data.squeeze(), expected)


def test_losses_are_finite_when_nothing_is_labelled():
    model = build().train()
    batch = samples((33, 33), 2)
    for one in batch:
        one.gt_sem_seg = PixelData(data=torch.full((1, 33, 33), 255))
    losses = model(torch.randn(2, 3, 33, 33), batch, mode='loss')
    assert losses['decode.loss_ce'] == 0 and losses['aux.loss_ce'] == 0
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
