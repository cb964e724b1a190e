"""One-sentence errors about missing data folders and files."""
import json
import os
import os.path as osp
from typing import Any, Iterator, Optional

from mmengine.registry import DATASETS

from .errors import DataError

_HINT = 'write or download the data, or set {} in the config or with --cfg-options'


def _local(path: Any) -> bool:
    return isinstance(path, str) and path != '' and '://' not in path


def _join(root: Any, path: str) -> str:
    return osp.join(root, path) if isinstance(root, str) else path


def _dataset_cfgs(cfg: Any) -> Iterator[dict]:
    """The innermost dataset configs in ``cfg``, without wrappers."""
    if isinstance(cfg, (list, tuple)):
        for item in cfg:
            yield from _dataset_cfgs(item)
    elif isinstance(cfg, dict):
        inner = [cfg[key] for key in ('dataset', 'datasets') if key in cfg]
        if inner:
            yield from _dataset_cfgs(inner)
        else:
            yield cfg


def _is_empty(path: str) -> bool:
    if osp.isdir(path):
        return not any(files for _, _, files in os.walk(path))
    return osp.getsize(path) == 0


def missing_data(dataset_cfg: dict) -> Optional[str]:
    """What is missing of the data that a dataset config names.

    For explaining why a dataset could not be built: some datasets need less than their config
    names.

    Args:
        dataset_cfg (dict): config of a dataset, wrapped or not.

    Returns:
        str or None: one sentence, or None if every local path exists and no folder is empty.
    """
    for cfg in _dataset_cfgs(dataset_cfg):
        name, root = cfg.get('type', 'dataset'), cfg.get('data_root')
        prefixes = cfg.get('data_prefix') or {}
        if not isinstance(prefixes, dict):
            prefixes = {'': prefixes}
        named = [('data_root', 'folder', root)]
        if _local(cfg.get('ann_file')):
            named.append(('ann_file', 'annotation file', _join(root, cfg['ann_file'])))
        for key, prefix in prefixes.items():
            if _local(prefix):
                named.append((f'data_prefix{key and "." + key}', 'folder', _join(root, prefix)))
        for key, what, path in named:
            if not _local(path):
                continue
            state = ('does not exist' if not osp.exists(path) else
                     'is empty' if _is_empty(path) else None)
            if state is not None:
                return f'the {what} {path} ({key} of {name}) {state}; {_HINT.format(key)}'
    return None


def explain(dataset_cfg: dict, error: Exception) -> Optional[DataError]:
    """The mistake in the data that caused building a dataset to fail.

    Args:
        dataset_cfg (dict): config of the dataset, wrapped or not.
        error (Exception): raised by its constructor.

    Returns:
        DataError or None: None if the data is not to blame.
    """
    missing = missing_data(dataset_cfg)
    if missing is not None:
        return DataError(missing)
    cfgs = list(_dataset_cfgs(dataset_cfg))
    if isinstance(error, json.JSONDecodeError):
        cfg = cfgs[0]
        return DataError(f'the annotation file {_join(cfg.get("data_root"), cfg["ann_file"])} '
                         f'(ann_file of {cfg.get("type", "dataset")}) is no valid JSON: {error}')
    if isinstance(error, ValueError):
        for cfg in filter(_holds_no_samples, cfgs):
            where = cfg.get('ann_file') or cfg.get('data_root')
            return DataError(f'{cfg.get("type", "dataset")} found no samples in {where}; '
                             f'{_HINT.format("ann_file and data_root")}')
    if isinstance(error, FileNotFoundError) or (
            type(error) is RuntimeError and any(map(_scans_folders, cfgs))):
        return DataError(str(error))
    return None


def _holds_no_samples(cfg: dict) -> bool:
    """Whether building a dataset fails only in serialising its samples, because it has none."""
    try:
        return len(DATASETS.build({**cfg, 'serialize_data': False})) == 0
    except Exception:  # Whatever a dataset may raise, it has been raised and is handled above.
        return False


def _scans_folders(cfg: dict) -> bool:
    """Whether a dataset is mmpretrain's for folders, whose only RuntimeError is for empty ones."""
    kind = cfg.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return any(base.__module__ == 'mmpretrain.datasets.custom'
               for base in getattr(kind, '__mro__', ()))


def _reads_elsewhere(dataset: Any) -> bool:
    """Whether images come from a storage other than the local disk."""
    for step in getattr(getattr(dataset, 'pipeline', None), 'transforms', []):
        for key in ('backend_args', 'file_client_args'):
            args = getattr(step, key, None) or {}
            if args.get('backend', 'local') not in ('local', 'disk'):
                return True
    return False


def inner_datasets(dataset: Any) -> list:
    """The datasets in a wrapper; none if the dataset is not a wrapper."""
    return getattr(dataset, 'datasets', None) or (
        [dataset.dataset] if hasattr(dataset, 'dataset') else [])


def check_dataset(dataset: Any) -> None:
    """Check that a built dataset has samples and that its first image exists.

    Raises:
        DataError: one of these does not hold.
    """
    inner = inner_datasets(dataset)
    for item in inner:
        check_dataset(item)
    name = type(dataset).__name__
    if not hasattr(dataset, '__len__'):
        return
    root = getattr(dataset, 'data_root', None)
    where = f' in {root}' if _local(root) else ''
    if len(dataset) == 0:
        raise DataError(f'{name} found no samples{where}; {_HINT.format("data_root")}')
    if inner or not hasattr(dataset, 'get_data_info') or _reads_elsewhere(dataset):
        return
    path = dataset.get_data_info(0).get('img_path')
    if _local(path) and not osp.exists(path):
        raise DataError(f'the first image of {name}, {path}, does not exist; '
                        f'{_HINT.format("data_root and data_prefix")}')
