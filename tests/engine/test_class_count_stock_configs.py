"""The class check stops none of the configs that mmdet, mmseg and mmpretrain ship.

Models are not built: they are replaced by trees of modules with the same names, and with the
number of classes given by the config, or else by the module's class.
"""
import ast
import copy
import functools
import inspect
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from torch import nn

from mmcontext.engine.hooks import check_classes
from mmcontext.utils.errors import DataError

_BASE = re.compile(r"""(['"]?)\{\{\s*_base_\.([\w.]+)\s*\}\}\1|(?<![\w.])_base_\.([\w.]+)""")


@functools.lru_cache(None)
def load(path):
    """The variables of a config: mmengine takes a tenth of a second per file, including bases."""
    text = Path(path).read_text()
    bases = []
    for statement in ast.parse(re.sub(r'\{\{.*?\}\}', '0', text)).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == '_base_':
            value = ast.literal_eval(statement.value)
            bases = [value] if isinstance(value, str) else value
    merged = {}
    for base in bases:
        package, _, name = base.rpartition('::')
        folder = configs_of(package) if package else os.path.dirname(path)
        merged.update(copy.deepcopy(load(os.path.normpath(os.path.join(folder, name)))))
    text = _BASE.sub(lambda match: f'_inherited.{match[2] or match[3]}', text)
    scope = {'_inherited': ConfigDict(copy.deepcopy(merged))}
    exec(compile(re.sub(r'\{\{.*?\}\}', '0', text), path, 'exec'), scope)
    return Config._merge_a_into_b(
        {key: value for key, value in scope.items()
         if key[0] != '_' and not callable(value) and not inspect.ismodule(value)}, merged)


def configs_of(package):
    return str(Path(pytest.importorskip(package).__file__).parent / '.mim/configs')


def stock_configs(package):
    """Configs by path, and the paths of those that even mmengine cannot read."""
    configs, broken = {}, []
    for path in sorted(Path(configs_of(package)).rglob('*.py')):
        if '_base_' in path.parts:
            continue
        try:
            configs[path] = load(str(path))
        except Exception:
            try:
                configs[path] = Config.fromfile(path)
            except Exception:
                broken.append(path)
    return configs, broken


def count_of(cfg, models):
    """num_classes of the module described by a config, or None."""
    kind = models.get(cfg['type']) if isinstance(cfg.get('type'), str) else cfg.get('type')
    if 'num_classes' in cfg:
        return cfg['num_classes']
    parameter = kind and inspect.signature(kind.__init__).parameters.get('num_classes')
    return None if not parameter or parameter.default is parameter.empty else parameter.default


def tree(cfg, models):
    """Modules with the names of those in the model described by a config."""
    module = nn.Module()
    module.__class__ = type(str(cfg.get('type')), (nn.Module, ), {})
    module.num_classes = count_of(cfg, models)
    for key, value in cfg.items():
        if isinstance(value, dict) and 'type' in value:
            setattr(module, key, tree(value, models))
        elif isinstance(value, (list, tuple)) and value and all(
                isinstance(item, dict) and 'type' in item for item in value):
            setattr(module, key, nn.ModuleList(tree(item, models) for item in value))
    return module


def dataset(cfg, datasets):
    inner = cfg.get('datasets') or ([cfg['dataset']] if 'dataset' in cfg else [])
    if inner:
        return SimpleNamespace(datasets=[dataset(item, datasets) for item in inner])
    kind = datasets.get(cfg['type'])
    known = getattr(kind, 'METAINFO', {})
    metainfo = {**known, **(cfg.get('metainfo') or {})}
    metainfo['classes'] = metainfo.get('classes', metainfo.get('CLASSES'))
    if not (isinstance(kind, type) and issubclass(kind, BaseDataset)):
        return SimpleNamespace(metainfo=metainfo)
    data = kind.__new__(kind)  # without its files
    data._metainfo = metainfo
    return data


def checked(cfg, registry):
    """Check training and validation as in the hook; whether there was a number to check."""
    model, numbers = tree(cfg['model'], registry.MODELS), 0
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(loader)
        for item in loader if isinstance(loader, list) else [loader]:
            if item:
                data = dataset(item['dataset'], registry.DATASETS)
                check_classes(model, data)
                numbers += 1
    return model, numbers


def names_classes(cfg, registry, video):
    """Whether the classes of the config's data are known without its files."""
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(loader)
        for item in loader if isinstance(loader, list) else [loader]:
            if item:
                data = dataset(item['dataset'], registry.DATASETS)
                if getattr(data, 'metainfo', {}).get('classes') and not isinstance(
                        data, video):
                    return True
    return False


def wrong_copies(cfg):
    """Copies of the config in which one box or mask head has a class too many, one per head."""
    def walk(node, path):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                if key in ('bbox_head', 'mask_head'):
                    first, where = (value[0], (*path, key, 0)) if isinstance(value, list) else (
                        value, (*path, key))
                    if 'num_classes' in first:
                        yield where
                if key != 'rpn_head':
                    yield from walk(value, (*path, key))

    for where in walk(cfg['model'], ()):
        wrong = copy.deepcopy(dict(cfg))
        node = wrong['model']
        for key in where:
            node = node[key]
        node['num_classes'] = 7777
        yield wrong


@pytest.mark.parametrize('package, least', [('mmdet', 800), ('mmseg', 650), ('mmpretrain', 500)])
def test_no_stock_config_is_stopped(package, least):
    registry = pytest.importorskip(f'{package}.registry')
    BaseVideoDataset = pytest.importorskip('mmdet.datasets').BaseVideoDataset
    pytest.importorskip(f'{package}.utils').register_all_modules(init_default_scope=True)
    configs, broken = stock_configs(package)
    stopped, missed, made, seen = {}, [], 0, set()
    for path, cfg in configs.items():
        if not isinstance(cfg.get('model'), dict):
            continue
        try:
            checked(cfg, registry)
        except DataError as error:
            stopped[path.name] = str(error)
        key = str([cfg['model'].get('type'), str(cfg.get('dataset_type'))])
        if (package != 'mmdet' or key in seen or 'language_model' in cfg['model']
                or not names_classes(cfg, registry, BaseVideoDataset)):
            continue
        seen.add(key)
        for wrong in wrong_copies(cfg):
            made += 1
            try:
                checked(wrong, registry)
                missed.append(path.name)
            except DataError:
                pass
    print(f'{package}: {len(configs)} configs, {len(broken)} unreadable, {made} wrong ones made, '
          f'{len(missed)} of them missed')
    assert not stopped, stopped
    assert len(configs) >= least and len(broken) < 10
    assert not missed, missed
    assert (made > 30 or package != 'mmdet')
