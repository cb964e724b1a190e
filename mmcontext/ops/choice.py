"""How an operator with several ways to compute is asked for one of them, everywhere alike.

An argument wins over an environment variable; 'auto', None and '' leave the choice to the
operator. A way that was asked for and cannot serve is an error. ``explain_...`` functions say
which way would be taken, and why not the others.
"""
import os
from typing import Collection, Dict, Mapping, NamedTuple, Optional, Union

AUTO = 'auto'

Explanation = Dict[str, Union[str, Dict[str, str]]]


class Request(NamedTuple):
    """The way asked for, and who asked; '' where nobody did."""
    way: str
    source: str


def check_way(source: str, way: str, ways: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``way`` is one of ``ways``."""
    if way not in ways:
        raise ValueError(f'{source} must be one of {", ".join(ways)}, got {way!r}')


def requested(argument: str, value: Optional[str], variable: str,
              ways: Collection[str]) -> Request:
    """The way that an argument, or an environment variable in its place, asks for.

    Args:
        argument: Name of the argument.
        value: Its value.
        variable: Name of the environment variable.
        ways: What may be asked for besides 'auto'.

    Raises:
        ValueError: It is anything else.
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
    """The error for a way that was asked for and cannot serve."""
    return RuntimeError(f'{argument} {way!r} of {operator} cannot serve: {reason}')


def explanation(chosen: str, reasons: Mapping[str, Optional[str]]) -> Explanation:
    """What the ``explain_...`` functions return.

    Args:
        chosen: The way that would be taken.
        reasons: Why others cannot serve or are passed over; None or '' for those that could.

    Returns:
        ``chosen``; ``refused``: way -> reason.
    """
    return {'chosen': chosen, 'refused': {way: reason for way, reason in reasons.items()
                                          if reason}}
