"""Loading checkpoints without running code, and finding the one to resume from.

mmengine stores its log buffers and numpy scalars in a checkpoint. ``torch.load`` with
``weights_only=True`` (the default since torch 2.6) does not know them and refuses such files.
This module allows these few types, so that training can be resumed and tested while every
other pickle that would run code is still refused.
"""
import argparse
import codecs
import logging
import os
import os.path as osp
import pickle
import re
import types
from collections import OrderedDict
from glob import escape, glob
from typing import Any, Callable, Dict, List, Optional

import torch

from .errors import CheckpointError
from .safetensors import SAFETENSORS, load_safetensors

# Maximum number of keys listed in an error.
_LISTED = 5
_STATISTICS = ('min', 'max', 'current', 'mean')


def _history_buffer_getattr(obj: Any, name: str) -> Callable:
    """Stand-in for ``getattr`` in checkpoints.

    mmengine's HistoryBuffer pickles its statistics as ``getattr(HistoryBuffer, 'min')``. The
    real ``getattr`` would give access to every attribute of every class, so this one supports
    only these four.
    """
    from mmengine.logging import HistoryBuffer
    if obj is HistoryBuffer and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f'GLOBAL getattr on {obj!r} for {name!r} is not part of a checkpoint of mmengine')


def safe_globals() -> Dict[str, Any]:
    """The types needed by checkpoints of mmengine and timm besides tensors: name -> object.

    numpy's names are given as written by numpy 1 and by numpy 2, and the built-in module as
    named in Python 2 pickles (protocol 2, torch's default) and in Python 3.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer
    allowed = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        # The arguments of a training script, which timm (CoTNet) stores with the weights.
        'argparse.Namespace': argparse.Namespace,
        # How bytes are pickled; torch < 2.2 does not list it.
        '_codecs.encode': codecs.encode,
    }
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed[f'{module}._reconstruct'] = np.zeros(1).__reduce__()[0]
        allowed[f'{module}.scalar'] = np.float64(0).__reduce__()[0]
    for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?':
        cls = type(np.dtype(code))
        allowed[f'{cls.__module__}.{cls.__qualname__}'] = cls
    for name in ('builtins.getattr', '__builtin__.getattr', 'getattr'):
        allowed[name] = _history_buffer_getattr
    return allowed


def register_safe_globals() -> bool:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    Called when mmcontext is imported. torch < 2.6 has no list of safe globals that takes
    names; instead, its restricted unpickler is replaced by :class:`_RestrictedUnpickler`.

    Returns:
        bool: False without mmengine, whose checkpoints need it.
    """
    try:
        allowed = safe_globals()
    except ImportError:
        return False
    if torch.__version__ >= (2, 6):
        torch.serialization.add_safe_globals([(obj, name) for name, obj in allowed.items()])
    else:
        torch.serialization._weights_only_unpickler = restricted_pickle_module()
    return True


class _RestrictedUnpickler(pickle._Unpickler):
    """weights_only unpickler for torch < 2.6, whose own accepts no additional types, or (2.5) none
    under other names."""

    def _allowed(self) -> Dict[str, Any]:
        known = torch._weights_only_unpickler._get_allowed_globals()
        return {**known, **safe_globals()}

    def find_class(self, module: str, name: str) -> Any:
        allowed = self._allowed()
        for spelling in (f'{module}.{name}', f'{module.replace("__builtin__", "builtins")}.{name}'):
            if spelling in allowed:
                return allowed[spelling]
        raise pickle.UnpicklingError(f'Unsupported class GLOBAL {module}.{name}')

    def load_build(self) -> None:
        # State is set only on instances of the known types, never on a class or a function.
        kinds = {torch.Tensor, torch.nn.Parameter, OrderedDict}
        kinds.update(obj for obj in safe_globals().values() if isinstance(obj, type))
        if type(self.stack[-2]) not in kinds:
            raise pickle.UnpicklingError(f'BUILD of GLOBAL {type(self.stack[-2])}')
        super().load_build()

    dispatch = dict(pickle._Unpickler.dispatch)
    dispatch[pickle.BUILD[0]] = load_build


def restricted_pickle_module() -> types.SimpleNamespace:
    """Replacement for the weights_only unpickler in ``torch.load`` of torch < 2.6."""
    def load(file, *, encoding: str = 'ASCII', **_) -> Any:
        return _RestrictedUnpickler(file, encoding=encoding).load()

    return types.SimpleNamespace(Unpickler=_RestrictedUnpickler, load=load)


def load_checkpoint_file(filename: str, map_location=None) -> dict:
    """Load a checkpoint file without running code from it.

    Args:
        filename (str): path of a local file; ``~`` is expanded.
        map_location: as for ``torch.load``. Defaults to None.

    Returns:
        dict: the checkpoint.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or would run code.
    """
    path = osp.expanduser(filename)
    if not osp.isfile(path):
        problem = 'is not a file' if osp.exists(path) else 'does not exist'
        raise CheckpointError(f'checkpoint {filename} {problem}')
    if not os.access(path, os.R_OK):
        raise CheckpointError(f'checkpoint {filename} may not be read (permission denied)')
    if path.endswith(SAFETENSORS):
        return load_safetensors(path, map_location)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch has one exception for refused types and for damage, without a field for the name.
        refused = re.search(r'GLOBAL (\S+)', str(error))
        if refused:
            raise CheckpointError(
                f'checkpoint {filename} is refused: it asks for {refused.group(1)!r}, which could '
                'run code, and only weights and training state are loaded') from error
        raise CheckpointError(_damage(path, filename)) from error
    except Exception as error:
        # Damaged files can raise nearly any error.
        if isinstance(error, MemoryError) or _reads_on_cpu(path):
            raise
        raise CheckpointError(_damage(path, filename)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {filename} holds a {type(checkpoint).__name__}, expected a dict with '
            'weights')
    return checkpoint


def _reads_on_cpu(path: str) -> bool:
    """Whether a file is intact, so that the device is to blame: missing, or out of memory."""
    try:
        torch.load(path, map_location='cpu', weights_only=True)
    except Exception:
        return False
    return True


def _damage(path: str, filename: str) -> str:
    with open(path, 'rb') as file:
        starts_as_zip = file.read(2) == b'PK'
    if starts_as_zip or osp.getsize(path) == 0:
        return (f'checkpoint {filename} is truncated or damaged ({osp.getsize(path)} bytes); '
                'copy it again or take an earlier one')
    return f'{filename} is not a PyTorch checkpoint'


def misfit(state: Dict[str, torch.Tensor], wanted: Dict[str, torch.Tensor]) -> str:
    """A short description of what prevents weights from loading strictly.

    Args:
        state (dict): the weights.
        wanted (dict): state dict of the model.

    Returns:
        str: how many entries are missing, unknown or of another shape, with the first of them;
        empty if they fit.
    """
    kinds = {
        'missing': [key for key in wanted if key not in state],
        'unknown': [key for key in state if key not in wanted],
        'of another shape': [key for key in wanted
                             if key in state and state[key].shape != wanted[key].shape],
    }
    return '; '.join(f'{len(keys)} entries are {kind} ({", ".join(keys[:_LISTED])})'
                     for kind, keys in kinds.items() if keys)


def load_from_local(filename: str, map_location=None) -> dict:
    """mmengine's local backend, using :func:`load_checkpoint_file`."""
    return load_checkpoint_file(filename, map_location)


def enforce_weights_only() -> None:
    """Make every checkpoint of this process load with ``weights_only=True``.

    For the command-line tools: files, downloads and model-zoo names are all covered, on every
    torch since 2.1, and a bad file gives a one-sentence error (:class:`CheckpointError`).
    """
    from mmengine.runner import CheckpointLoader
    register_safe_globals()
    # torch does not allow both to be set; the unsafe one is removed.
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    CheckpointLoader.register_scheme('', loader=load_from_local, force=True)


def _recorded_checkpoint(work_dir: str) -> Optional[str]:
    """The file named by ``work_dir/last_checkpoint``, even if the folder has been moved."""
    record = osp.join(work_dir, 'last_checkpoint')
    if not osp.isfile(record):
        return None
    with open(record, errors='replace') as file:
        path = file.read().strip()
    for candidate in (path, osp.join(work_dir, osp.basename(path))):
        if path and osp.isfile(candidate):
            return candidate
    return None


def _later_than_recorded(path: str, recorded: str, work_dir: str) -> bool:
    """Whether a checkpoint was written after the recorded one, but not recorded itself."""
    kind, count = osp.splitext(osp.basename(path))[0].split('_')
    match = re.fullmatch(rf'{kind}_(\d+)\.pth', osp.basename(recorded))
    return (match is not None and int(count) > int(match.group(1))
            and osp.getmtime(path) > osp.getmtime(osp.join(work_dir, 'last_checkpoint')))


def find_resumable_checkpoint(work_dir: str,
                              logger: Optional[logging.Logger] = None) -> Optional[str]:
    """The newest checkpoint of a run that can be loaded.

    A run that died while writing can leave a truncated newest file, a complete one that
    ``last_checkpoint`` does not name yet, or an empty ``last_checkpoint``. Files of an
    earlier run in the same folder are not mistaken for newer ones.

    Args:
        work_dir (str): folder of the run.
        logger (logging.Logger, optional): logs every file that is skipped.

    Returns:
        str or None: None if the folder has no checkpoints.

    Raises:
        CheckpointError: there are checkpoints but none can be loaded.
    """
    recorded = _recorded_checkpoint(work_dir)
    found: List[str] = [path for path in glob(osp.join(escape(work_dir), '*.pth'))
                        if re.fullmatch(r'(epoch|iter)_\d+\.pth', osp.basename(path))
                        and osp.isfile(path)]
    candidates = sorted(found, key=osp.getmtime, reverse=True)
    if recorded is not None:
        others = [path for path in candidates if not osp.samefile(path, recorded)]
        later = [path for path in others if _later_than_recorded(path, recorded, work_dir)]
        candidates = [*later, recorded, *(path for path in others if path not in later)]
    for path in candidates:
        try:
            load_checkpoint_file(path, map_location='cpu')
        except CheckpointError as error:
            if logger is not None:
                logger.warning(f'Not resuming from the newest file: {error}')
            continue
        return path
    if candidates:
        raise CheckpointError(
            f'none of the {len(candidates)} checkpoints in {work_dir} can be loaded; start anew '
            'without --resume, in another --work-dir')
    return None
