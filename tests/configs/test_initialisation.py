"""Every tensor of every network is initialised as in the authors' code.

`initialisation.yml` says how; here are the mean, standard deviation and kurtosis for its terms.
"""
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).resolve().parents[2]
RULES = yaml.safe_load((Path(__file__).parent / 'initialisation.yml').read_text())
# Base width in the test; the others cannot be narrower.
WIDTHS = dict(coresnet=16, cotnet=16, se_cotnetd=16, cotnext=32, rednet=32, cednet=32)
FAMILIES = dict(coconv='resnet', pyconv='resnet', cotnet='cotnet', rednet='rednet',
                cednet='rednet', ccnn='ccnn')
# The 320-pixel and augmented recipes and those by other authors train the same networks.
NETWORKS = sorted(
    path for path in ROOT.glob('configs/*/*_imagenet.py')
    if path.parent.name in FAMILIES and not re.search('320|augment|rsb|ckresnet', path.stem))
# Deeper PyConvResNets are among the classifiers, and the heads are the same.
SEGMENTORS = sorted(path for path in ROOT.glob('configs/pyconv/pyconvsegnet_*_ade20k.py')
                    if not re.search('pyconvresnet1', path.stem))
CCNNS = sorted(path for path in ROOT.glob('configs/ccnn/ccnn_[46]_*.py')
               if 'modelnet' not in path.stem)
# Standard errors. There are about 20000 tensors, and the seed is fixed.
ERRORS = 6
# Of larger tensors only the first values are tested.
SAMPLE = 2**15
NORMAL, UNIFORM = 3., 1.8


@pytest.fixture(autouse=True)
def no_records(monkeypatch):
    """Disable mmengine's record of initialisations, which takes most of the time."""
    for module in ('base_module', 'weight_init'):
        monkeypatch.setattr(f'mmengine.model.{module}.update_init_info', lambda *a, **k: None)


def fan_in_of(name, tensors):
    return tensors[re.sub('bias$', 'weight', name)][0].numel()


def moments(word, name, tensors, settings):
    """Mean, standard deviation and kurtosis."""
    tensor = tensors[name]
    if word in ('zero', 'one'):
        return float(word == 'one'), 0., NORMAL
    if word == 'normal_0.01':
        return 0., 0.01, NORMAL
    if word in ('he_fan_out', 'he_fan_in'):
        receptive = math.prod(tensor.shape[2:])
        fan = tensor.shape[0] * receptive if word == 'he_fan_out' else fan_in_of(name, tensors)
        return 0., math.sqrt(2 / fan), NORMAL
    if word == 'torch':
        return 0., 1 / math.sqrt(3 * fan_in_of(name, tensors)), UNIFORM
    if word == 'lecun_uniform':
        return 0., 1 / math.sqrt(fan_in_of(name, tensors)), UNIFORM
    if word == 'mask':
        return settings['mask'], 0., NORMAL
    if word == 'box':
        side = 1.667 * settings['mask']
        return ((1 - side / 2, side / math.sqrt(12), UNIFORM) if settings['causal'] else
                (0., side / math.sqrt(3), UNIFORM))
    # Filter i has gamma ~ Gamma(6 / (i + 1), 1), and 2 pi omega gamma times torch's weight.
    alpha = 6 / (int(re.search(r'filters\.(\d)', name)[1]) + 1)
    if word == 'gamma':
        return alpha, math.sqrt(alpha), 3 + 6 / alpha
    assert word == 'sine'
    deviation = 2 * math.pi * settings['omega_0'] * math.sqrt(
        alpha * (alpha + 1) / (3 * fan_in_of(name, tensors)))
    return 0., deviation, UNIFORM * (alpha + 2) * (alpha + 3) / (alpha * (alpha + 1))


def draw_nothing(layer):
    """Replaces torch's draw in the constructor, to save time and to reveal what stays unset."""
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, math.nan)


def check(model, family, settings=None):
    torch.manual_seed(0)
    model.init_weights()
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    pooled = {}
    for name, tensor in tensors.items():
        [word] = [word for pattern, word in RULES[family]
                  if re.fullmatch(pattern, f'{name}/{tensor.dim()}d')][:1]
        mean, deviation, kurtosis = moments(word, name, tensors, settings)
        values = tensor.flatten()[:SAMPLE].double()
        if not deviation:
            # The parameter is a float32.
            assert (values - mean).abs().max() < 1e-7, name
            continue
        scores = (values - mean) / deviation
        close(scores, kurtosis, name)
        if kurtosis == UNIFORM:
            assert scores.abs().max() < math.sqrt(3) + 1e-5, name
        pooled.setdefault((word, round(kurtosis, 3)), []).append(scores)
    for (word, kurtosis), scores in pooled.items():
        close(torch.cat(scores), kurtosis, f'all {word}')


def close(scores, kurtosis, name):
    """Mean 0 and standard deviation 1 within the sampling error."""
    assert abs(scores.mean()) < ERRORS / math.sqrt(scores.numel()), name
    error = math.sqrt((kurtosis - 1) / scores.numel())
    assert abs(scores.square().mean() - 1) < ERRORS * error, name


@pytest.mark.parametrize('path', NETWORKS, ids=lambda path: path.stem)
def test_classifier(path, monkeypatch):
    config = Config.fromfile(path).model
    width = WIDTHS.get(re.split(r'\d', path.stem)[0])
    if width:
        config.head.in_channels = config.head.in_channels * width // 64
        config.backbone.base_channels = width
    init_default_scope('mmpretrain')
    monkeypatch.setattr(torch.nn.Conv2d, 'reset_parameters', draw_nothing)
    check(MODELS.build(config), FAMILIES[path.parent.name])


@pytest.mark.parametrize('path', SEGMENTORS, ids=lambda path: path.stem)
def test_segmentor(path):
    config = Config.fromfile(path).model
    config.backbone.init_cfg = None
    if config.backbone.type == 'ResNet':
        config.backbone.base_channels = 16
        config.decode_head.in_channels //= 4
        config.auxiliary_head.in_channels //= 4
    init_default_scope('mmseg')
    check(MODELS.build(config), 'pyconvsegnet')


@pytest.mark.parametrize('path', CCNNS, ids=lambda path: path.stem)
def test_ccnn(path):
    config = Config.fromfile(path).model
    conv = config.backbone.conv_cfg
    init_default_scope('mmpretrain')
    check(MODELS.build(config), 'ccnn', dict(
        mask=conv.mask_cfg.init, causal=conv.causal, omega_0=conv.kernel_cfg.omega_0))


def test_all_networks_are_here():
    assert (len(NETWORKS), len(SEGMENTORS), len(CCNNS)) == (28, 4, 28)
