"""Renaming, checking against the model, and writing."""
import os
import re
import tempfile
from typing import Dict, Mapping, Optional, Sequence

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

# Names under which training code stores the weights, the preferred ones first; they may be nested.
_WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'net', 'state_dict_ema')
_MAX_WRAPPERS = 3
# Prefixes of DataParallel, torch.compile and training code, then those of mmcls.
_PREFIXES = re.compile(r'(?:(?:module|_orig_mod|model)\.)*(?:(?:backbone|head)\.(?=\w))?')
_LISTED = 20


def _unwrap(checkpoint: Mapping) -> Dict[str, Tensor]:
    """The plain state dict of a checkpoint, without prefixes."""
    for _ in range(_MAX_WRAPPERS):
        inner = [checkpoint[name] for name in _WRAPPERS
                 if isinstance(checkpoint.get(name), Mapping)]
        if inner:
            checkpoint = inner[0]
    sources = {}
    for key, value in checkpoint.items():
        if not isinstance(key, str):
            raise CheckpointError(f'the checkpoint is no state dict: its key {key!r} is a '
                                  f'{type(key).__name__}, expected a string')
        if not isinstance(value, Tensor):
            raise CheckpointError(f'the checkpoint is no state dict: its entry {key!r} is a '
                                  f'{type(value).__name__}, expected a tensor')
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f'entry {key!r} of the checkpoint is a tensor of {value.layout} '
                                  f'and {value.dtype} on {value.device}, expected a dense one with '
                                  'values')
        name = key[_PREFIXES.match(key).end():]
        if name in sources:
            raise CheckpointError(f'the checkpoint is ambiguous: its entries {sources[name]!r} '
                                  f'and {key!r} differ by their prefixes alone')
        sources[name] = key
    if not sources:
        raise CheckpointError('the checkpoint holds no tensors')
    return {name: checkpoint[key] for name, key in sources.items()}


def _listing(keys: Sequence[str]) -> str:
    more = f' and {len(keys) - _LISTED} more' if len(keys) > _LISTED else ''
    return ', '.join(key if key.isprintable() else repr(key) for key in keys[:_LISTED]) + more


def convert_state_dict(state: Mapping[str, Tensor], rules: Sequence[Rule],
                       model: nn.Module) -> Dict[str, Tensor]:
    """Rename the entries of the authors' state dict so that they load strictly into a model.

    Args:
        state: The authors' entries, without prefixes.
        rules: Renaming rules of the architecture.
        model: The model they are for (it may be on the meta device).

    Returns:
        Entries with the names and in the order of the model.

    Raises:
        CheckpointError: Entries are unknown, missing, given twice, of the wrong shape or dtype,
            or not finite; it lists them.
    """
    renamed, unknown, repeated = {}, [], []
    for key, value in state.items():
        for pattern, rename in rules:
            match = pattern.fullmatch(key)
            if match:
                target = rename(match)
                if target in renamed:
                    repeated.append(target)
                elif target is not None:
                    renamed[target] = value
                break
        else:
            unknown.append(key)
    wanted = model.state_dict()
    unknown += [key for key in renamed if key not in wanted]
    for key in wanted:
        if key.endswith('num_batches_tracked'):
            # Checkpoints from before PyTorch 0.4.1 lack the count; half-precision ones store it
            # as float16.
            renamed[key] = renamed.get(key, torch.zeros(())).long()
    missing, misshaped, mistyped, infinite = [], [], [], []
    for key, value in wanted.items():
        found = renamed.get(key)
        if found is None:
            missing.append(key)
        elif found.shape != value.shape:
            misshaped.append(f'{key} {tuple(found.shape)} instead of {tuple(value.shape)}')
        elif found.is_floating_point() != value.is_floating_point():
            mistyped.append(f'{key} {found.dtype}')
        elif not found.isfinite().all():
            infinite.append(key)
    problems = [
        f'{len(keys)} {kind}: {_listing(keys)}'
        for kind, keys in (('unknown', unknown), ('given twice', repeated), ('missing', missing),
                           ('misshaped', misshaped), ('of a wrong dtype', mistyped),
                           ('NaN or infinite', infinite))
        if keys
    ]
    if problems:
        raise CheckpointError('the checkpoint does not fit the architecture; entries that are '
                              + '; '.join(problems))
    return {key: renamed[key] for key in wanted}


def build_for_conversion(config_file: str, num_classes: Optional[int] = None) -> nn.Module:
    """The model of a config on the meta device: names and shapes, no memory.

    Args:
        config_file: Path of the config.
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
    """Convert a checkpoint file; the destination is written completely or not at all.

    Args:
        source: The authors' checkpoint: a state dict, at the top level or under 'state_dict',
            'model', 'model_state_dict', 'net' or, if there is none of these, 'state_dict_ema';
            keys with or without the prefixes 'module.', '_orig_mod.', 'model.', 'backbone.' and
            'head.'.
        destination: File to write: {'state_dict': ..., 'meta': ...}.
        arch: A key of :data:`ARCHITECTURES`, or 'ccnn': any continuous CNN, not compared with
            a config.
        config_root: Folder with the configs.

    Raises:
        UserError: ``arch`` is unknown, or the destination cannot be written.
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
        classifier = state.get(architecture.classes_from)
        if classifier is not None and classifier.dim() == 4 and len(classifier):
            meta['num_classes'] = len(classifier)
            meta['config'] = architecture.configs_by_classes.get(
                meta['num_classes'], architecture.config)
        model = build_for_conversion(os.path.join(config_root, meta['config']),
                                     meta.get('num_classes'))
        state = convert_state_dict(state, architecture.rules, model)
    # Copies, so that the whole storage of a view is not saved with it.
    state = {key: value.detach().clone() for key, value in state.items()}
    _save({'state_dict': state, 'meta': meta}, destination)


def _save(checkpoint: dict, destination: str) -> None:
    folder = os.path.dirname(os.path.abspath(destination))
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix='.tmp', delete=False) as file:
            temporary = file.name
            torch.save(checkpoint, file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, destination)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError if the disk is full
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'cannot write the destination {destination!r}: {reason}') from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
