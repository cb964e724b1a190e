"""What mmengine lacks: a runner, hooks, and the counting of multiply-adds.

Imported when a ``mmcontext.`` hook is named.
"""
from . import hooks

__all__ = ['hooks']
