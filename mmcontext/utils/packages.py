"""What is installed, determined by import, so that a fork with another name counts too."""
import importlib.util
import os.path as osp
import sys
import warnings
from importlib import metadata
from typing import List, Optional

from mmcontext.version import __version__

# This project's name on the package index, where another project has the name mmcontext.
DISTRIBUTION = 'mmcontext-vision'
OTHER_PROJECT = 'mmcontext'


def distributions(module: str) -> List[str]:
    """Names of the installed distributions that provide a module: mmcv-lite, onedl-mmcv, ..."""
    return sorted(set(metadata.packages_distributions().get(module, [])))


def folder_of(module: str) -> Optional[str]:
    """The folder of a package, without importing it; None if there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return osp.dirname(spec.origin) if spec is not None and spec.origin else None


def warn_of_other_project() -> None:
    """Warn if the other project called mmcontext is installed too.

    Both have the folder ``mmcontext``, so each of them overwrites files of the other.
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
    """Make ``_base_ = 'mmcontext::...'`` work, and ``'mmseg::...'`` with forks.

    mmengine has a fixed table of the packages whose configs can be inherited, and treats its
    entries as distributions, or else as modules. So a module is entered: for mmseg, if it is not
    provided by the distribution mmsegmentation, and for this package a module inside it, as the
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
    """Whether the base classes of mmpretrain's multimodal models exist, from the two folders."""
    if int(metadata.version('transformers').split('.')[0]) >= 5:
        return False
    needed, place = 'apply_chunking_to_forward', 'modeling_utils'
    with open(osp.join(mmpretrain, 'models', 'multimodal', 'blip2', 'Qformer.py')) as file:
        if f'from transformers.{place} import {needed}' not in file.read():
            return True
    with open(osp.join(transformers, f'{place}.py')) as file:
        return needed in file.read()


def leave_out_multimodal() -> None:
    """Allow mmpretrain to be imported with a transformers that is too new for it.

    If pycocotools and any transformers are installed, mmpretrain imports its multimodal models,
    whose base classes are not in transformers 5 (those of mmpretrain 1.2.0 not in the last 4.x
    either). Without these models it can be imported, and using one of them gives its own message.
    Nothing is done once it has been imported, or if its files are not the known ones.
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
    # The package does not load again what it finds there.
    sys.modules[name] = module
