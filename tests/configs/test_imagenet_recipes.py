"""The ImageNet configs have the authors' recipes, and every option takes effect."""
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from tolerances import assert_close
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# SPEC of the networks: network -> (batch per GPU, learning rate, weight decay, GPUs).
COTNET = {
    'cotnet50': (80, 0.25, 4e-5), 'cotnext50': (64, 0.2, 4e-5), 'se_cotnetd50': (80, 0.25, 4e-5),
    'cotnet101': (56, 0.175, 6e-5), 'cotnext101': (64, 0.2, 6e-5),
    'se_cotnetd101': (64, 0.2, 4e-5), 'se_cotnetd152': (64, 0.2, 4e-5),
    'se_cotnetd152_320': (64, 0.2, 4e-5),
}


@pytest.fixture(autouse=True)
def mmpretrain_scope():
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}_imagenet.py')


def learning_rates(cfg: Config, epoch_length: int) -> np.ndarray:
    """Learning rate of every iteration, [epochs, epoch_length]."""
    options = dict(cfg.optim_wrapper.optimizer)
    options = {key: options[key] for key in options if key not in ('type', '_scope_')}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], **options)
    schedulers = cfg.param_scheduler
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    schedulers = [
        PARAM_SCHEDULERS.build(
            copy.deepcopy(scheduler),
            default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        for scheduler in schedulers]
    optimizer.step()
    rates = np.empty((cfg.train_cfg.max_epochs, epoch_length))
    for epoch in range(len(rates)):
        for iteration in range(epoch_length):
            rates[epoch, iteration] = optimizer.param_groups[0]['lr']
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return rates


def pipeline(cfg: Config, split: str) -> Compose:
    return Compose([TRANSFORMS.build(step)
                    for step in cfg[f'{split}_dataloader'].dataset.pipeline[1:]])


def image(height=180, width=240) -> dict:
    pixels = np.random.RandomState(0).randint(30, 200, (height, width, 3), dtype=np.uint8)
    return dict(img=pixels, img_shape=(height, width), ori_shape=(height, width), gt_label=3)


def step(cfg: Config, split: str, name: str) -> dict:
    return next(s for s in cfg[f'{split}_dataloader'].dataset.pipeline if s['type'] == name)


@pytest.mark.parametrize('name', [
    'coconv/coresnet50', 'coconv/coresnet152', 'pyconv/pyconvresnet18', 'pyconv/pyconvresnet50',
    'pyconv/pyconvhgresnet101'])
def test_step_recipe(name):
    cfg = load(name)
    assert cfg.train_dataloader.batch_size == 32 and cfg.auto_scale_lr.base_batch_size == 256
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.9, 1e-4)
    assert not optimizer.get('nesterov', False)
    rates = learning_rates(cfg, 1)[:, 0]
    # Each step multiplies and rounds in float64.
    np.testing.assert_allclose(
        rates, [0.1] * 30 + [0.01] * 30 + [0.001] * 20 + [0.0001] * 10, rtol=1e-12)
    assert pipeline(cfg, 'val')(image())['inputs'].shape == (3, 224, 224)
    assert step(cfg, 'val', 'ResizeEdge').scale == 256
    assert pipeline(cfg, 'train')(image())['inputs'].shape == (3, 224, 224)


@pytest.mark.parametrize('depth', [50, 101])
@pytest.mark.parametrize('suffix, resize, crop', [('', 256, 224), ('_320', 366, 320)])
def test_augment_recipe(depth, suffix, resize, crop):
    cfg = Config.fromfile(CONFIGS / f'pyconv/pyconvresnet{depth}_augment_imagenet{suffix}.py')
    assert cfg.model.backbone.depth == depth
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.train_cfg.max_epochs == 300
    rates = learning_rates(cfg, 1)[:, 0]
    # mmengine computes a cosine step by step.
    np.testing.assert_allclose(
        rates, 0.2 * (1 + np.cos(np.pi * np.arange(300) / 300)), rtol=1e-6, atol=1e-12)
    assert step(cfg, 'val', 'ResizeEdge').scale == resize
    assert pipeline(cfg, 'val')(image())['inputs'].shape == (3, crop, crop)
    assert pipeline(cfg, 'train')(image())['inputs'].shape == (3, 224, 224)
    head = MODELS.build(cfg.model.head)
    mixed = torch.tensor([[0.3, 0.7] + [0.] * 998])
    scores = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    expected = -(mixed * scores.log_softmax(1)).sum()
    assert_close(head.loss_module(scores, mixed), expected)


def test_cutmix_mixes_every_batch():
    cfg = load('pyconv/pyconvresnet50_augment')
    preprocessor = MODELS.build(dict(
        type='ClsDataPreprocessor', batch_augments=cfg.model.train_cfg, **cfg.data_preprocessor))
    names = [type(augment).__name__ for augment in preprocessor.batch_augments.augments]
    assert names == ['CutMix'] and preprocessor.batch_augments.probs is None
    assert preprocessor.to_onehot


@pytest.mark.parametrize('family', ['rednet', 'cednet'])
@pytest.mark.parametrize('depth', [26, 50, 152])
def test_rednet_recipe(family, depth):
    cfg = load(f'{family}/{family}{depth}')
    assert cfg.train_dataloader.batch_size == 32 and cfg.auto_scale_lr.base_batch_size == 2048
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (
        'SGD', 0.9, 1e-4, True)
    loss = MODELS.build(cfg.model.head).loss_module
    assert (type(loss).__name__, loss.label_smooth_val, loss.num_classes) == (
        'LabelSmoothLoss', 0.1, 1000)
    assert pipeline(cfg, 'val')(image())['inputs'].shape == (3, 224, 224)


def test_rednet_schedule_is_a_cosine_times_a_linear_warm_up_of_3130_iterations():
    epoch_length = 626  # 1281167 images in batches of 2048
    rates = learning_rates(load('rednet/rednet50'), epoch_length)
    epochs, iterations = np.indices(rates.shape)
    iterations = iterations + epochs * epoch_length
    cosine = 0.4 * (1 + np.cos(np.pi * epochs / 130))
    warm_up = np.minimum(0.25 + 0.75 * iterations / 3129, 1)
    # mmengine computes a cosine step by step.
    np.testing.assert_allclose(rates, cosine * warm_up, rtol=1e-6)
    assert rates[0, 0] == pytest.approx(0.2) and rates[5, 0] == pytest.approx(cosine[5, 0])


@pytest.mark.parametrize('name', COTNET)
def test_cotnet_recipe(name):
    batch_size, lr, weight_decay = COTNET[name]
    cfg = load(f'cotnet/{name}')
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.auto_scale_lr.base_batch_size == 8 * batch_size
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        'SGD', lr, 0.9, weight_decay)
    assert cfg.model.backbone.drop_path_rate == (0.15 if '152' in name else 0.1)

    rates = learning_rates(cfg, 2)
    assert len(rates) == 350 and (rates[:, 0] == rates[:, 1]).all()
    rates, epochs = rates[:, 0], np.arange(350)
    # The authors' steps, and their cosine starting at the first epoch. (mmengine's has begun to
    # fall during the warm-up already.)
    np.testing.assert_allclose(rates[:5], 1e-4 + epochs[:5] * (lr - 1e-4) / 5, rtol=4e-4)
    cosine = 1e-5 + (lr - 1e-5) * (1 + np.cos(np.pi * epochs / 350)) / 2
    np.testing.assert_allclose(rates[5:], cosine[5:], rtol=1e-7)

    size, resize = {'se_cotnetd152': (256, 288), 'se_cotnetd152_320': (320, 352)}.get(
        name, (224, 256))
    for split in ('train', 'val'):
        assert pipeline(cfg, split)(image())['inputs'].shape == (3, size, size)
    assert step(cfg, 'val', 'ResizeEdge').scale == resize
    for split, transform in (('train', 'RandomResizedCrop'), ('val', 'ResizeEdge')):
        assert step(cfg, split, transform).interpolation == 'bicubic'


def test_cotnet_regularisation():
    cfg = load('cotnet/cotnet50')
    head = MODELS.build(cfg.model.head)
    assert type(head).__module__.startswith('mmcontext')
    assert head.dropout.p == 0.25 and head.loss_module.label_smooth_val == 0.1
    preprocessor = MODELS.build(dict(
        type='ClsDataPreprocessor', batch_augments=cfg.model.train_cfg, **cfg.data_preprocessor))
    augments = preprocessor.batch_augments
    assert [(type(a).__name__, a.alpha) for a in augments.augments] == [
        ('Mixup', 0.8), ('CutMix', 1.0)]
    assert augments.probs is None  # equally likely


def test_cotnet_rand_augment():
    cfg = load('cotnet/cotnet50')
    augment = TRANSFORMS.build(step(cfg, 'train', 'RandAugment'))
    assert augment.num_policies == 2
    rotate = next(t for t in augment.transforms if type(t).__name__ == 'Rotate')
    np.random.seed(0)
    degrees = np.array([rotate.random_magnitude() for _ in range(2000)])
    # N(15, 0.5) clipped at 15; level 10 is a rotation by 30 degrees.
    assert degrees.max() == 45 and 0.45 < (degrees == 45).mean() < 0.55
    # 2000 draws.
    assert np.std(45 - degrees[degrees < 45]) == pytest.approx(3 * 0.5 * 0.603, rel=0.1)
    assert rotate.interpolation == 'bicubic' and rotate.pad_val == (104, 116, 124)

    source = image()['img']
    for transform in augment.transforms:
        transform.prob = 1.
        out = transform(dict(img=source.copy(), img_shape=source.shape[:2]))['img']
        # Solarize's threshold is above 255 at this level, as in the authors' code.
        unchanged = np.array_equal(out, source)
        assert unchanged == (type(transform).__name__ == 'Solarize'), type(transform).__name__


@pytest.mark.parametrize('name, size', [
    ('cotnet50', 224), ('se_cotnetd152', 256), ('se_cotnetd152_320', 320)])
def test_cotnet_shifts_by_150_pixels_at_most(name, size):
    augment = TRANSFORMS.build(step(load(f'cotnet/{name}'), 'train', 'RandAugment'))
    shifts = [t for t in augment.transforms if type(t).__name__ == 'Translate']
    assert [t.direction for t in shifts] == ['horizontal', 'vertical']
    for shift in shifts:
        assert shift.magnitude_range[1] * size == pytest.approx(150)


def test_cotnet_weight_decay_spares_norms_and_biases():
    from mmengine.optim import build_optim_wrapper
    cfg = load('cotnet/cotnet50')
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups
              for p in group['params']}
    assert wrapper.optimizer.defaults['nesterov']
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        '0.weight': 4e-5, '0.bias': 0, '1.weight': 0, '1.bias': 0, '2.weight': 4e-5, '2.bias': 0}


def test_cotnet_ema_decay():
    cfg = load('cotnet/cotnet50')
    _, options = cfg.custom_hooks
    options.pop('priority')  # the runner's, not the hook's
    hook = HOOKS.build(options)
    source = nn.BatchNorm1d(1)
    average = MODELS.build(hook.ema_cfg, default_args=dict(model=source))
    average.update_parameters(source)
    source.weight.data.fill_(3.)
    source.running_mean.fill_(1.)
    average.update_parameters(source)
    assert average.module.weight.item() == pytest.approx(0.9999 * 1 + 0.0001 * 3)
    assert average.module.running_mean.item() == pytest.approx(0.0001, rel=1e-3)  # float32
