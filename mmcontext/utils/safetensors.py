"""Checkpoints as safetensors: weights and a few strings about them, nothing executable."""
import json
import os.path as osp
from typing import Any, Dict, Mapping

from torch import Tensor

from .errors import CheckpointError, UserError, required

SAFETENSORS = '.safetensors'
# Entry of the file's metadata, whose values are strings; ours is JSON.
_META = 'mmcontext'


def _library():
    required('safetensors.torch', f'files that end in {SAFETENSORS} need', 'safetensors')
    import safetensors
    return safetensors


def save_safetensors(state: Mapping[str, Tensor], meta: Mapping[str, Any], path: str) -> None:
    """Write weights and their metadata.

    Args:
        state: Tensors by name; each is written completely, even if two share memory.
        meta: Metadata that can be written as JSON.
        path: File to write.

    Raises:
        UserError: The package is missing, or the file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    library = _library()
    try:
        # 'format' is what transformers and timm look for.
        library.torch.save_file(tensors, path, {'format': 'pt', _META: json.dumps(meta)})
    except (OSError, library.SafetensorError) as error:
        raise UserError(f'cannot write {path}: {error}') from error


def load_safetensors(path: str, map_location: Any = None) -> Dict[str, dict]:
    """Read a safetensors file.

    Args:
        path: The file, written by any library.
        map_location: Device of the tensors; None for the CPU.

    Returns:
        ``{'state_dict': ..., 'meta': ...}``, as in mmengine's checkpoints.

    Raises:
        CheckpointError: The file is truncated or not a safetensors file.
        UserError: The package is missing.
    """
    library = _library()
    try:
        with library.safe_open(path, 'pt', device='cpu') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
            meta = json.loads((file.metadata() or {}).get(_META, '{}'))
    except (library.SafetensorError, ValueError) as error:
        raise CheckpointError(f'checkpoint {path} is truncated, damaged or no safetensors file '
                              f'({osp.getsize(path)} bytes): {error}') from error
    if map_location is not None:
        state = {key: value.to(map_location) for key, value in state.items()}
    return {'state_dict': state, 'meta': meta}
