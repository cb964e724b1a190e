"""Errors whose message is meant for the person at the command line."""
import importlib
from types import ModuleType


class UserError(RuntimeError):
    """A mistake in the user's input, described in one sentence.

    The tools print the message without a traceback and exit with status 1.
    """


class CheckpointError(UserError):
    """A checkpoint file that is missing, damaged, or refused because it would run code."""


class DataError(UserError):
    """A data folder or annotation file that is missing or empty."""


def required(package: str) -> ModuleType:
    """Import a package that only some tools need.

    Raises:
        UserError: It cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f'this needs the package {package}, which cannot be imported here '
                        f'({error}); install it with: pip install {package}') from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, without a listing that may follow."""
    return str(error).strip().partition('\n')[0].strip('"')
