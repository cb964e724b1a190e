"""Everything described by the configs in configs/ can be built."""
import copy
from itertools import product
from pathlib import Path
from typing import Iterator

import pytest
import torch
import yaml
from common import MILLIONS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    HOOKS,
    MODELS,
    PARAM_SCHEDULERS,
    RUNNERS,
    TRANSFORMS,
    DefaultScope,
)
from torch import nn

from mmcontext.engine.flops import build_model, config_complexity
from mmcontext.engine.runner import ContextRunner

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs')) for path in ROOT.glob('configs/*/*.py')
    if path.parent.name != '_base_')

PARAMS = {f'{"se_cotnetd" if family == "SECoTNetD" else family.lower()}{depth}': millions
          for (family, depth), millions in MILLIONS.items()}
# Published giga multiply-adds; test_zoo.py compares the zoo's figures for the others with theirs.
FLOPS = {
    'rednet26': 1.7, 'rednet38': 2.2, 'rednet50': 2.7, 'cednet50': 2.9, 'cotnet50': 3.3,
    'cotnext50': 4.3, 'se_cotnetd50': 4.1,
}
CLASSIFIERS = {
    'coconv': ['coresnet50', 'coresnet101', 'coresnet152'],
    'pyconv': [f'pyconvresnet{d}' for d in (18, 34, 50, 101, 152)]
    + [f'pyconvhgresnet{d}' for d in (50, 101, 152)]
    + [f'pyconvresnet{d}_augment' for d in (50, 101)],
    'cotnet': ['cotnet50', 'cotnet101', 'cotnext50', 'cotnext101', 'se_cotnetd50',
               'se_cotnetd101', 'se_cotnetd152', 'se_cotnetd152_320'],
    'rednet': [f'rednet{d}' for d in (26, 38, 50, 101, 152)],
    'cednet': [f'cednet{d}' for d in (26, 38, 50, 101, 152)],
}
DENSE = {
    'coconv': 'coresnet50', 'pyconv': 'pyconvresnet50', 'cotnet': 'cotnet50',
    'rednet': 'rednet50', 'cednet': 'cednet50'
}
ZOO = {model['Config']: model['Metadata']
       for path in sorted(ROOT.glob('configs/*/metafile.yml'))
       for model in yaml.safe_load(path.read_text())['Models']}


@pytest.fixture
def no_initial_values(monkeypatch):
    """Layers are not initialised: building is about structure here."""
    for name in ('uniform_', 'normal_', 'trunc_normal_', 'kaiming_uniform_', 'kaiming_normal_',
                 'xavier_uniform_', 'xavier_normal_'):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    pytest.importorskip(cfg.default_scope)
    return cfg


def parts(node, key: str) -> Iterator:
    """Every value of a key in a nested config."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        for value in node.values():
            yield from parts(value, key)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from parts(value, key)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds(name, no_initial_values):
    cfg = load(name)
    # So that any program that starts it has the features of the tools.
    assert RUNNERS.get(cfg.runner_type) is ContextRunner
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        options = copy.deepcopy(cfg.optim_wrapper)
        if options.get('type') == 'AmpOptimWrapper' and not torch.cuda.is_available():
            # mmengine builds this wrapper only if there is an accelerator.
            options.type = 'OptimWrapper'
            options.pop('loss_scale')
        wrapper = build_optim_wrapper(model, options)
        trained = {id(p) for group in wrapper.optimizer.param_groups for p in group['params']}
        assert {id(p) for p in model.parameters() if p.requires_grad} <= trained
        schedulers = cfg.param_scheduler
        for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
            PARAM_SCHEDULERS.build(
                copy.deepcopy(scheduler),
                default_args=dict(optimizer=wrapper, epoch_length=10))
        for hook in cfg.get('custom_hooks', []):
            HOOKS.build({key: hook[key] for key in hook if key != 'priority'})
        pipelines = [pipeline for split in ('train', 'val', 'test')
                     for pipeline in parts(cfg[f'{split}_dataloader'], 'pipeline')]
        assert len(pipelines) >= 3
        for step in sum(pipelines, []):
            TRANSFORMS.build(step)

    assert parameters(model) == ZOO[f'configs/{name}']['Parameters']
    stem = Path(name).stem
    if stem.endswith(('_imagenet', '_imagenet_320')):
        network = stem.replace('_imagenet', '').replace('_augment', '').replace('_320', '')
        if network in PARAMS:
            # Three decimals.
            assert parameters(model) / 1e6 == pytest.approx(PARAMS[network], abs=0.0005)


@pytest.mark.parametrize('network', FLOPS)
def test_flops_are_the_published_ones(network, no_initial_values):
    family = next(f for f, names in CLASSIFIERS.items() if network in names)
    name = f'{family}/{network}_imagenet.py'
    counts = config_complexity(load(name), (224, 224))
    assert counts.flops == ZOO[f'configs/{name}']['FLOPs']
    # Published counts differ in what is small (norms, activations) and are rounded to 0.1 G.
    assert counts.flops / 1e9 == pytest.approx(FLOPS[network], rel=0.02)


def test_published_classifiers_are_there():
    wanted = {f'{family}/{name}_imagenet.py'
              for family, names in CLASSIFIERS.items() for name in names}
    wanted |= {f'pyconv/pyconvresnet{d}_augment_imagenet_320.py' for d in (50, 101)}
    wanted |= {f'{family}/{name}_rsb-{recipe}_imagenet.py' for recipe in ('a2', 'a3')
               for family, name in [*DENSE.items(), ('pyconv', 'pyconvhgresnet50'),
                                    ('ccnn', 'ckresnet50'), ('resnet', 'resnet50')]}
    wanted.add('ccnn/ckresnet50_imagenet.py')
    assert wanted == {name for name in CONFIGS
                      if '_imagenet' in name}


@pytest.mark.parametrize('family', DENSE)
def test_every_family_has_its_dense_configs(family):
    net = DENSE[family]
    wanted = {f'{family}/{detector}_rcnn_{net}{suffix}_1x_coco.py'
              for detector, suffix in product(
                  ('faster', 'mask'), ('_fpn', '_neck_fpn', '_neck_fpn_head'))}
    wanted |= {f'{family}/{head}_{net}{neck}_512x1024_80k_cityscapes.py'
               for head, neck in (('fpn', ''), ('fpn', '_neck'), ('upernet', ''))}
    assert wanted <= set(CONFIGS)
    assert any(name.startswith(f'{family}/') and name.endswith('_digits.py') for name in CONFIGS)


def test_published_dense_configs_are_there():
    wanted = {f'cotnet/{detector}_{net}{depth}_fpn_1x_coco.py' for detector, net, depth in product(
        ('faster_rcnn', 'mask_rcnn', 'cascade_rcnn', 'cascade_mask_rcnn'),
        ('cotnet', 'cotnext', 'se_cotnetd'), (50, 101))}
    wanted |= {f'rednet/retinanet_rednet50{neck}_fpn_1x_coco.py' for neck in ('', '_neck')}
    wanted |= {f'pyconv/pyconvsegnet_{net}{depth}_ade20k.py' for net, depth in product(
        ('resnet', 'pyconvresnet'), (50, 101, 152))}
    wanted |= {f'pyconv/pyconvsegnet_{net}50_cityscapes.py' for net in ('resnet', 'pyconvresnet')}
    wanted |= {f'{family}/mask_rcnn_{family}50_fpn_ms_3x_adamw_coco.py'
               for family in ('rednet', 'cednet', 'cotnet')}
    wanted |= {'cednet/cednet26_digits.py', 'cednet/mask_rcnn_cednet26_fpn_digits.py',
               'pyconv/pyconvsegnet_pyconvresnet18_digits.py'}
    assert wanted <= set(CONFIGS)


def test_sync_norms_do_not_stop_the_counter():
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in build_model(
        load('cotnet/faster_rcnn_cotnet50_fpn_1x_coco.py')).modules())
