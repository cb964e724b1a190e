"""Compiled kernels on disk, so that only the first process that needs one compiles it."""
import hashlib
import os
import pathlib
import tempfile
import warnings
from typing import Callable, Optional

CACHE_VARIABLE = 'MMCONTEXT_KERNEL_CACHE'
_DIGEST_BYTES = 32


def folder() -> Optional[pathlib.Path]:
    """Where compiled kernels are cached.

    The folder named by the environment variable ``MMCONTEXT_KERNEL_CACHE`` ('off': no cache), else
    ``mmcontext/kernels`` in the user's cache folder. None: no cache.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return None if named == 'off' else pathlib.Path(named)
    base = os.environ.get('XDG_CACHE_HOME')
    try:
        return (pathlib.Path(base) if base else pathlib.Path.home() / '.cache') / (
            'mmcontext/kernels')
    except RuntimeError:  # a user without a home
        return None


def _read(path: pathlib.Path) -> Optional[bytes]:
    """What was stored in a file; None if there is none or it is incomplete."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, image = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return image if hashlib.sha256(image).digest() == digest else None


def _write(path: pathlib.Path, image: bytes) -> None:
    """Store it atomically, also if another process writes the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(hashlib.sha256(image).digest() + image)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def kept(identity: str, make: Callable[[], bytes]) -> bytes:
    """A compiled kernel, from disk or made now and stored.

    If the folder cannot be written there is a warning, and every process compiles anew.

    Args:
        identity: Everything that the result depends on.
        make: Compiles it.
    """
    where = folder()
    if where is None:
        return make()
    path = where / hashlib.sha256(identity.encode()).hexdigest()
    image = _read(path)
    if image is None:
        image = make()
        try:
            _write(path, image)
        except OSError as error:
            warnings.warn(f'compiled kernels cannot be kept in {where} ({error}); set '
                          f'{CACHE_VARIABLE} to another folder, or to off', stacklevel=2)
    return image
