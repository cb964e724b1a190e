"""Renaming, checking against the model, and writing."""
import os
import re
import tempfile
from typing import Dict, List, Mapping, Optional, Sequence

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmcontext.converters.architectures import ARCHITECTURES
from mmcontext.converters.ccnn import CCNN_ARCH, convert_ccnn
from mmcontext.converters.rules import Rule
from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.errors import CheckpointError, UserError
from mmcontext.version import __version__

# Wrappers of a state dict, outermost first.
_WRAPPERS = ('state_dict', 'model')
_LISTED = 20


def _unwrap(checkpoint: Mapping) -> Dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    state = {}
    for key, value in checkpoint.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f'the checkpoint is no state dict: its entry {key!r} is a '
                                  f'{type(value).__name__}, expected a tensor')
        key = re.sub(r'^(?:module\.)+', '', key)
        state[re.sub(r'^(?:backbone|head)\.(?=\w)', '', key)] = value
    if not state:
        raise CheckpointError('the checkpoint holds no tensors')
    return state


def _listing(keys: Sequence[str]) -> str:
    more = f' and {len(keys) - _LISTED} more' if len(keys) > _LISTED else ''
    return ', '.join(keys[:_LISTED]) + more


def convert_state_dict(state: Mapping[str, Tensor], rules: Sequence[Rule],
                       model: nn.Module) -> Dict[str, Tensor]:
    """Rename the entries of an authors' state dict so that they load strictly into a model.

    Args:
        state: The authors' entries, bare.
        rules: Renaming rules of the architecture.
        model: The model they are for (it may be on the meta device).

    Returns:
        Entries under the names and in the order of the model.

    Raises:
        CheckpointError: Keys are unknown, missing or misshaped; it lists them.
    """
    renamed, unknown = {}, []
    for key, value in state.items():
        for pattern, rename in rules:
            match = pattern.fullmatch(key)
            if match:
                target = rename(match)
                if target is not None:
                    renamed[target] = value
                break
        else:
            unknown.append(key)
    wanted = model.state_dict()
    unknown += [key for key in renamed if key not in wanted]
    # Checkpoints from before PyTorch 0.4.1 do not count batches.
    for key in wanted:
        if key.endswith('num_batches_tracked'):
            renamed.setdefault(key, torch.zeros((), dtype=torch.long))
    missing = [key for key in wanted if key not in renamed]
    misshaped = [
        f'{key} {tuple(renamed[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if key in renamed and renamed[key].shape != value.shape
    ]
    problems: List[str] = [
        f'{len(keys)} {kind}: {_listing(keys)}'
        for kind, keys in (('unknown', unknown), ('missing', missing), ('misshaped', misshaped))
        if keys
    ]
    if problems:
        raise CheckpointError('the checkpoint does not fit the architecture; entries that are '
                              + '; '.join(problems))
    return {key: renamed[key] for key in wanted}


def build_for_conversion(config_file: str, num_classes: Optional[int] = None) -> nn.Module:
    """The model of a config on the meta device: names and shapes, no memory.

    Args:
        config_file: Its path.
        num_classes: Number of classes of every head; None for that of the config.
    """
    config = Config.fromfile(config_file)
    if num_classes is not None:
        for head in ('decode_head', 'auxiliary_head'):
            config.model[head].num_classes = num_classes
    init_default_scope(config.get('default_scope', 'mmengine'))
    with torch.device('meta'):
        return MODELS.build(config.model)


def convert_checkpoint(source: str, destination: str, arch: str, config_root: str) -> None:
    """Convert a checkpoint file; the destination is written whole or not at all.

    Args:
        source: The authors' checkpoint: a state dict, bare or under 'state_dict' or 'model',
            keys with or without 'module.', 'backbone.' and 'head.' prefixes.
        destination: File to write: {'state_dict': ..., 'meta': ...}.
        arch: A key of :data:`ARCHITECTURES`, or 'ccnn': any continuous CNN, not held against
            a config.
        config_root: Folder with the configs.

    Raises:
        UserError: ``arch`` is unknown.
        CheckpointError: The file is damaged, or its entries do not fit.
    """
    if arch not in ARCHITECTURES and arch != CCNN_ARCH:
        known = ', '.join([*ARCHITECTURES, CCNN_ARCH])
        raise UserError(f'unknown arch {arch!r}; expected one of {known}')
    state = _unwrap(load_checkpoint_file(source, map_location='cpu'))
    meta = dict(arch=arch, mmcontext_version=__version__)
    if arch == CCNN_ARCH:
        state = convert_ccnn(state)
    else:
        architecture = ARCHITECTURES[arch]
        meta['config'] = architecture.config
        if architecture.classes_from in state:
            meta['num_classes'] = len(state[architecture.classes_from])
            meta['config'] = architecture.configs_by_classes.get(
                meta['num_classes'], architecture.config)
        model = build_for_conversion(os.path.join(config_root, meta['config']),
                                     meta.get('num_classes'))
        state = convert_state_dict(state, architecture.rules, model)
    converted = {'state_dict': state, 'meta': meta}
    folder = os.path.dirname(os.path.abspath(destination))
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix='.tmp', delete=False) as file:
        try:
            torch.save(converted, file)
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, destination)
