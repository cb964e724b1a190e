"""Choosing among several implementations of an operator, in the same way everywhere.

An argument takes precedence over an environment variable; 'auto', None and '' leave the choice to
the operator. Requesting an implementation that does not support the call is an error. The
``explain_...`` functions tell which one would be used, and why not the others.
"""
import os
from typing import Collection, Dict, Mapping, NamedTuple, Optional, Union

AUTO = 'auto'

Explanation = Dict[str, Union[str, Dict[str, str]]]


class Request(NamedTuple):
    """The implementation requested, and by what; '' if there was no request."""
    way: str
    source: str


def check_way(source: str, way: str, ways: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``way`` is one of ``ways``."""
    if way not in ways:
        raise ValueError(f'{source} must be one of {", ".join(ways)}, got {way!r}')


def requested(argument: str, value: Optional[str], variable: str,
              ways: Collection[str]) -> Request:
    """The implementation requested by an argument or, failing that, an environment variable.

    Args:
        argument: Name of the argument.
        value: Its value.
        variable: Name of the environment variable.
        ways: What may be requested besides 'auto'.

    Raises:
        ValueError: Anything else is requested.
    """
    if value:
        source = f'argument {argument}'
    else:
        value = os.environ.get(variable)
        if not value:
            return Request(AUTO, '')
        source = f'environment variable {variable}'
    if value != AUTO:
        check_way(source, value, (AUTO, *ways))
    return Request(value, source)


def cannot_serve(argument: str, way: str, operator: str, reason: str) -> RuntimeError:
    """The error for a requested implementation that does not support the call."""
    return RuntimeError(f'{argument} {way!r} of {operator} does not support this call: {reason}')


def explanation(chosen: str, reasons: Mapping[str, Optional[str]]) -> Explanation:
    """What the ``explain_...`` functions return.

    Args:
        chosen: The implementation that would be used.
        reasons: Why others are not; None or '' for those that could be used.

    Returns:
        ``chosen``; ``refused``: way -> reason.
    """
    return {'chosen': chosen, 'refused': {way: reason for way, reason in reasons.items()
                                          if reason}}
