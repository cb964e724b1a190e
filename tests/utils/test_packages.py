"""Distributions other than the expected ones: forks, another mmcontext, a new transformers."""
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from mmengine.config.utils import MODULE2PACKAGE

from mmcontext.utils import collect_env, packages


def add_distribution(folder: Path, name: str, version: str, module: str, summary: str = 'x'):
    """Install an empty distribution into a folder on the path."""
    (folder / module).mkdir()
    (folder / module / '__init__.py').write_text(f'__version__ = "{version}"\n')
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n')
    (info / 'top_level.txt').write_text(f'{module}\n')


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_fork_is_named(elsewhere):
    add_distribution(elsewhere, 'onedl-thing', '3.1', 'thing')
    assert collect_env._package('thing', 'thing') == '3.1 (onedl-thing)'
    assert collect_env._package('nothing', 'nothing') == 'not installed'
    (elsewhere / 'thing' / '__init__.py').write_text('import nothing')
    sys.modules.pop('thing')
    assert collect_env._package('thing', 'thing') \
        == "cannot be imported (onedl-thing): ModuleNotFoundError: No module named 'nothing'"


def test_configs_are_found_by_module(monkeypatch):
    """As needed by a user's config: _base_ = 'mmseg::...' with onedl-mmsegmentation."""
    def version(name):
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(packages, 'folder_of', lambda module: None)
    monkeypatch.setattr(packages.metadata, 'version', version)
    packages.register_config_scopes()
    assert MODULE2PACKAGE['mmseg'] == 'mmsegmentation'  # not there: what to install is this
    monkeypatch.setattr(packages, 'folder_of', lambda module: '/some/folder')
    packages.register_config_scopes()
    assert MODULE2PACKAGE['mmseg'] == 'mmseg'


def test_a_config_of_the_user_inherits_from_this_package(tmp_path):
    """In a process that imports only the package."""
    (tmp_path / 'mine.py').write_text("_base_ = 'mmcontext::_base_/models/cednet50.py'\n")
    done = subprocess.run(
        [sys.executable, '-c', 'import mmcontext; from mmengine.config import Config; '
         'print(Config.fromfile("mine.py").model.backbone.type)'],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(Path(packages.__file__).parents[2])})
    assert done.stdout.strip() == 'mmcontext.CedNet', done.stderr


def test_the_other_project_is_named(elsewhere, recwarn):
    add_distribution(elsewhere, 'mmcontext', '2.0.1', 'anything', 'text with omics')
    packages.warn_of_other_project()
    assert 'mmcontext 2.0.1 is another project' in str(recwarn.pop(UserWarning).message)


def test_a_tool_names_the_other_project(elsewhere):
    add_distribution(elsewhere, 'mmcontext', '2.0.1', 'mmcontext')
    tool = Path(packages.__file__).parents[2] / 'tools' / 'train.py'
    done = subprocess.run([sys.executable, str(tool), 'x.py'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(elsewhere)})
    assert done.returncode == 1
    assert done.stderr.startswith('train.py: error: the mmcontext in ')
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('version, has_name, left_out', [
    ('5.24.0', False, True), ('4.57.1', False, True), ('4.49.0', True, False)])
def test_mmpretrain_does_without_multimodal_models(elsewhere, monkeypatch, version, has_name,
                                                   left_out):
    for name, number in (('transformers', version), ('pycocotools', '2.0')):
        add_distribution(elsewhere, name, number, name)
    (elsewhere / 'transformers/modeling_utils.py').write_text(
        'apply_chunking_to_forward = None' if has_name else '')
    folder = elsewhere / 'mmpretrain'
    (folder / 'utils').mkdir(parents=True)
    (folder / 'models/multimodal/blip2').mkdir(parents=True)
    (folder / '__init__.py').write_text('')
    (folder / 'utils/dependency.py').write_text('WITH_MULTIMODAL = True\n')
    (folder / 'models/multimodal/blip2/Qformer.py').write_text(
        'from transformers.modeling_utils import apply_chunking_to_forward\n')
    for name in [name for name in sys.modules if name.split('.')[0] in (
            'mmpretrain', 'transformers', 'pycocotools')]:
        monkeypatch.delitem(sys.modules, name)
    packages.leave_out_multimodal()
    placed = sys.modules.pop('mmpretrain.utils.dependency', types.SimpleNamespace())
    assert (getattr(placed, 'WITH_MULTIMODAL', None) is False) == left_out
