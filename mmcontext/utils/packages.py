"""What is installed, by import: a fork of another name serves like the original."""
import importlib.util
import os.path as osp
import sys
import warnings
from importlib import metadata
from typing import List, Optional

from mmcontext.version import __version__

# This project's name on the package index, and what another one's has for a name there.
DISTRIBUTION = 'mmcontext-vision'
OTHER_PROJECT = 'mmcontext'


def distributions(module: str) -> List[str]:
    """Names of the installed distributions that bring a module: mmcv-lite, onedl-mmcv, ..."""
    return sorted(set(metadata.packages_distributions().get(module, [])))


def folder_of(module: str) -> Optional[str]:
    """The folder of a package, without importing it; None where there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return osp.dirname(spec.origin) if spec is not None and spec.origin else None


def warn_of_other_project() -> None:
    """Say so where the other project that is called mmcontext is installed too.

    Both own the folder ``mmcontext``, so that each of them writes over files of the other.
    """
    try:
        other = metadata.distribution(OTHER_PROJECT)
    except metadata.PackageNotFoundError:
        return
    if 'OpenMMLab' in (other.metadata['Summary'] or ''):  # an older install of this one
        return
    warnings.warn(
        f'the distribution {OTHER_PROJECT} {other.version} is another project, and owns the same '
        f'folder as {DISTRIBUTION} {__version__}: pip uninstall {OTHER_PROJECT}, and install '
        f'{DISTRIBUTION} again', stacklevel=3)


def register_config_scopes() -> None:
    """Let ``_base_ = 'mmcontext::...'`` be found, and ``'mmseg::...'`` under forks.

    mmengine has a fixed table of the packages whose configs can be inherited, and takes its
    entries for distributions, or else for modules. So a module is entered: of mmseg where the
    distribution mmsegmentation is not what brings it, and of this package one inside it, as the
    distribution ``mmcontext`` would be the other project.
    """
    try:
        from mmengine.config.utils import MODULE2PACKAGE
    except ImportError:
        return
    MODULE2PACKAGE.setdefault('mmcontext', 'mmcontext.version')
    try:
        metadata.version(MODULE2PACKAGE['mmseg'])
    except metadata.PackageNotFoundError:
        if folder_of('mmseg') is not None:
            MODULE2PACKAGE['mmseg'] = 'mmseg'


def _multimodal_imports(mmpretrain: str, transformers: str) -> bool:
    """Whether mmpretrain's multimodal models find what they inherit from, by the two folders."""
    if int(metadata.version('transformers').split('.')[0]) >= 5:
        return False
    needed, place = 'apply_chunking_to_forward', 'modeling_utils'
    with open(osp.join(mmpretrain, 'models', 'multimodal', 'blip2', 'Qformer.py')) as file:
        if f'from transformers.{place} import {needed}' not in file.read():
            return True
    with open(osp.join(transformers, f'{place}.py')) as file:
        return needed in file.read()


def leave_out_multimodal() -> None:
    """Let mmpretrain be imported with a transformers that is too new for it.

    Where pycocotools and any transformers are installed, mmpretrain imports its multimodal models,
    and their bases are not in transformers 5 (those of mmpretrain 1.2.0: nor in its last 4.x).
    Without these models it imports, and asking for one of them gives its own message. Nothing is
    done once it has been imported, or where its files are not those that are known.
    """
    folder, transformers = folder_of('mmpretrain'), folder_of('transformers')
    if 'mmpretrain' in sys.modules or not (folder and transformers and folder_of('pycocotools')):
        return
    name = 'mmpretrain.utils.dependency'
    try:
        if _multimodal_imports(folder, transformers):
            return
        spec = importlib.util.spec_from_file_location(
            name, osp.join(folder, 'utils', 'dependency.py'))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (OSError, ValueError, ImportError):  # (no metadata is an ImportError)
        return
    module.WITH_MULTIMODAL = False
    # What the package finds there it does not load again.
    sys.modules[name] = module
