"""Training checkpoints as files for others to load: weights and where they come from."""
import hashlib
import os.path as osp
from typing import Mapping, Optional, Sequence

import torch
from mmengine.config import Config
from torch import Tensor

from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.errors import CheckpointError, UserError
from mmcontext.utils.safetensors import SAFETENSORS, save_safetensors
from mmcontext.version import __version__
from mmcontext.zoo.index import get_config


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, independent of their order and file."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f'{key} {value.dtype} {tuple(value.shape)}\n'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _config_text(config: Optional[str], meta: Mapping) -> Optional[str]:
    if config is None:
        return meta.get('cfg')
    if osp.isfile(config):
        return Config.fromfile(config).pretty_text
    try:
        return get_config(config).pretty_text
    except ValueError as error:
        raise UserError(f'config {config} is neither a file nor a name: {error}') from error


def publish(source: str, destination: str, config: Optional[str] = None,
            classes: Optional[Sequence[str]] = None, origin: str = '', licence: str = '') -> str:
    """Write the weights of a checkpoint as safetensors, without its training state.

    Args:
        source: A training checkpoint, or a converted one.
        destination: File to write, ``NAME.safetensors``; the first eight digits of the hash are
            inserted: ``NAME-1a2b3c4d.safetensors``.
        config: Config file or name in the zoo; None for the config in the checkpoint.
        classes: Names of the classes; None for those in the checkpoint.
        origin: Where the weights come from: data, recipe, authors' file.
        licence: Licence of the weights.

    Returns:
        The file written. Its metadata are ``cfg`` (the config's text, read by mm inferencers),
        ``dataset_meta`` (classes and palette), ``hash``, ``source``, ``licence``, and the version
        of mmcontext, epoch and iteration.

    Raises:
        UserError: An argument is wrong, the file cannot be read or written, or safetensors is
            missing.
    """
    if not destination.endswith(SAFETENSORS):
        raise UserError(f'destination must end with {SAFETENSORS}, got {destination!r}')
    checkpoint = load_checkpoint_file(source, map_location='cpu')
    state = checkpoint.get('state_dict', checkpoint)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f'checkpoint {source} holds no weights under state_dict')
    meta = checkpoint.get('meta') or {}
    dataset_meta = {key: meta.get('dataset_meta', {})[key] for key in ('classes', 'palette')
                    if meta.get('dataset_meta', {}).get(key) is not None}
    if classes is not None:
        dataset_meta['classes'] = list(classes)
    digest = weights_hash(state)
    described = dict(
        cfg=_config_text(config, meta), dataset_meta=dataset_meta, hash=digest, source=origin,
        licence=licence, mmcontext_version=__version__,
        **{key: meta[key] for key in ('epoch', 'iter') if key in meta})
    path = f'{destination[:-len(SAFETENSORS)]}-{digest[:8]}{SAFETENSORS}'
    save_safetensors(state, described, path)
    return path
