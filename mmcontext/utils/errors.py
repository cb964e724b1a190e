"""Errors whose message is meant for the person at the command line."""
import importlib
from types import ModuleType
from typing import Optional, Type


class UserError(RuntimeError):
    """A mistake in the user's input, described in one sentence.

    The tools print the message without a traceback and exit with status 1.
    """


class CheckpointError(UserError):
    """A checkpoint file that is missing, damaged, or refused because it would run code."""


class DataError(UserError):
    """A data folder or annotation file that is missing or empty."""


def required(module: str, what: str = 'this needs', package: Optional[str] = None,
             kind: Type[Exception] = UserError) -> ModuleType:
    """Import a module of a package that only some uses need.

    Args:
        module: Its name.
        what: Beginning of the sentence, which ends in "needs" or "need".
        package: Its name for pip. Default: that of the module.
        kind: Exception to raise.

    Raises:
        Exception: Of ``kind``; the module cannot be imported.
    """
    package = package or module
    try:
        return importlib.import_module(module)
    except (ImportError, AssertionError) as error:
        # mmdet and mmseg assert on the version of mmcv.
        raise kind(f'{what} the package {package}, which cannot be imported here ({error}); '
                   f'install it with: pip install {package}') from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, without a listing that may follow."""
    return str(error).strip().partition('\n')[0].strip('"')
