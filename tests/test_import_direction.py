"""Imports run one way: ops <- layers <- models, and optional packages stay optional."""
import ast
import os.path as osp
from glob import glob

import mmcontext

ROOT = osp.dirname(mmcontext.__file__)
# Folder -> the parts of mmcontext and the mm libraries that its modules may import.
ALLOWED = {
    'ops': {'mmcontext.ops'},
    'layers': {'mmcontext.ops', 'mmcontext.layers', 'mmcontext.registry', 'mmengine', 'mmcv'},
    'models/backbones': {'mmcontext.layers', 'mmcontext.ops', 'mmcontext.registry',
                         'mmcontext.models.backbones', 'mmengine', 'mmcv'},
    'models/necks': {'mmcontext.layers', 'mmcontext.ops', 'mmcontext.registry',
                     'mmcontext.models.necks', 'mmcontext.models.context_module', 'mmengine',
                     'mmcv'},
    'models/heads': {'mmcontext.layers', 'mmcontext.ops', 'mmcontext.registry',
                     'mmcontext.models.heads', 'mmcontext.models.context_module', 'mmengine',
                     'mmcv', 'mmpretrain', 'mmdet', 'mmseg'},
    'models': {'mmcontext.layers', 'mmcontext.ops', 'mmcontext.registry', 'mmcontext.models',
               'mmengine', 'mmcv'},
    'converters': {'mmcontext.converters', 'mmcontext.utils', 'mmcontext.version', 'mmengine'},
    'datasets': {'mmcontext.datasets', 'mmcontext.registry', 'mmcontext.utils', 'mmengine', 'mmcv',
                 'mmpretrain'},
    'engine': {'mmcontext.engine', 'mmcontext.layers', 'mmcontext.registry', 'mmcontext.utils',
               'mmengine', 'mmdet.structures'},
    'deployment': {'mmcontext', 'mmengine', 'mmcv', 'mmdet'},
    'utils': {'mmcontext.utils', 'mmcontext.version', 'mmengine'},
    'zoo': {'mmcontext', 'mmengine'},
    'visualization': {'mmcontext', 'mmengine', 'mmcv', 'mmpretrain.apis.model'},
    '': {'mmcontext', 'mmengine'},
}
# A program that examines all the others: it may import them, and none may import it.
PROGRAM = 'utils/collect_env.py'
WATCHED = ('mmcontext', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')


def imported(path):
    with open(path) as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                folder = path
                for _ in range(node.level):
                    folder = osp.dirname(folder)
                package = osp.relpath(folder, osp.dirname(ROOT)).replace(osp.sep, '.')
                yield f'{package}.{node.module}' if node.module else package
            else:
                yield node.module


def test_imports_run_one_way():
    wrong = []
    for path in glob(osp.join(ROOT, '**', '*.py'), recursive=True):
        file = osp.relpath(path, ROOT).replace(osp.sep, '/')
        if file == PROGRAM:
            continue
        folder = osp.dirname(file)
        while folder not in ALLOWED and '/' in folder:
            folder = osp.dirname(folder)
        assert folder in ALLOWED, f'{file} is in a folder whose imports nobody has stated'
        for name in imported(path):
            assert name != 'mmcontext.utils.collect_env', path
            if name.split('.')[0] in WATCHED and not any(
                    name == prefix or name.startswith(prefix + '.') for prefix in ALLOWED[folder]):
                wrong.append(f'{file} imports {name}')
    assert not wrong, '\n'.join(wrong)
