import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope

from mmcontext.registry import TRANSFORMS


def sample():
    image = np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8)
    return dict(img=image, img_shape=(40, 60), gt_seg_map=image[..., 0].copy(),
                seg_fields=['gt_seg_map'])


def test_random_scale_is_relative_to_the_image():
    pytest.importorskip('mmseg')
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmseg.utils import register_all_modules
        register_all_modules(init_default_scope=False)
        half = TRANSFORMS.build(dict(type='mmcontext.RandomScale', ratio_range=(0.5, 0.5)))
        some = TRANSFORMS.build(dict(type='mmcontext.RandomScale', ratio_range=(0.5, 2.)))
    result = half(sample())
    assert result['img'].shape == (20, 30, 3) and result['gt_seg_map'].shape == (20, 30)
    # Labels are picked, not mixed.
    assert set(np.unique(result['gt_seg_map'])) <= set(np.unique(sample()['gt_seg_map']))
    np.random.seed(0)
    heights = [some(sample())['img'].shape[0] for _ in range(200)]
    assert 20 <= min(heights) < 23 and 77 < max(heights) <= 80
    assert abs(np.mean(heights) - 50) < 4


def test_random_gaussian_blur_leaves_the_labels():
    blur = TRANSFORMS.build(dict(type='mmcontext.RandomGaussianBlur', prob=1.))
    result = blur(sample())
    assert np.array_equal(result['img'], cv2.GaussianBlur(sample()['img'], (5, 5), 0))
    assert np.array_equal(result['gt_seg_map'], sample()['gt_seg_map'])
    never = TRANSFORMS.build(dict(type='mmcontext.RandomGaussianBlur', prob=0.))
    assert np.array_equal(never(sample())['img'], sample()['img'])


@pytest.mark.parametrize('cfg', [
    dict(type='RandomScale', ratio_range=(2., 0.5)), dict(type='RandomScale', ratio_range=(0, 1)),
    dict(type='RandomGaussianBlur', prob=1.5), dict(type='RandomGaussianBlur', kernel_size=4)])
def test_wrong_arguments(cfg):
    with pytest.raises(ValueError, match='must be'):
        TRANSFORMS.build(dict(cfg, type=f'mmcontext.{cfg["type"]}'))
