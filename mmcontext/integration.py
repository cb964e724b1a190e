"""Registers this package in mmengine, mmpretrain, mmdet and mmseg.

This is done for each of them once it is imported itself, so that ``import mmcontext`` is fast and
needs none of them.
"""
import functools
from types import ModuleType

from mmcontext.utils.after_import import after_import
from mmcontext.utils.packages import register_config_scopes


def _load_from_safetensors(filename: str, map_location=None) -> dict:
    from mmcontext.utils.checkpoint import load_checkpoint_file
    return load_checkpoint_file(filename, map_location)


def _add_safetensors(checkpoint: ModuleType) -> None:
    """Let mmengine load local files that end in .safetensors, for any caller."""
    checkpoint.CheckpointLoader.register_scheme(
        r'(?!.*://).*\.safetensors$', loader=_load_from_safetensors, force=True)


def _add_packages(config_utils: ModuleType) -> None:
    """Make ``_base_ = 'mmcontext::...'`` work, and with forks ``'mmseg::...'``."""
    register_config_scopes()


def _add_to_model_hub(apis: ModuleType) -> None:
    """Add the classifiers of the zoo to mmpretrain by name."""
    from mmcontext.zoo import index
    hub = apis.ModelHub
    if any(hub.has(name) for name in index.entries()):
        return
    hub.register_model_index(f'{index.root()}/model-index.yml', config_prefix=index.root())
    for entry in index.entries().values():
        if entry.task != 'classification':
            # mmpretrain cannot build it.
            del hub._models_dict[entry.name]
            continue
        model = hub._models_dict[entry.name]
        if model.results is None and not entry.name.startswith('ccnn'):
            # Its inferencers choose models by the task of the published results.
            from modelindex.models.Result import Result
            model.results = [Result('Image Classification', dataset=None, metrics={})]


def _add_to_inferencer(infer: ModuleType) -> None:
    """Add the zoo's detectors and segmentors to the inferencers of mmdet and mmseg by name."""
    inferencer = infer.BaseInferencer
    known = inferencer._load_model_from_metafile
    if hasattr(known, '__wrapped__'):
        return

    @functools.wraps(known)
    def load_model_from_metafile(self, model: str):
        from mmcontext.zoo import index
        if model.lower() in index.entries():
            return index.get_config(model), None
        return known(self, model)

    inferencer._load_model_from_metafile = load_model_from_metafile


def register() -> None:
    """Register in each library as soon as it is imported."""
    after_import('mmengine.config.utils', _add_packages)
    after_import('mmengine.runner.checkpoint', _add_safetensors)
    after_import('mmengine.infer.infer', _add_to_inferencer)
    after_import('mmpretrain.apis.model', _add_to_model_hub)
