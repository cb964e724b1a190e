"""What mmengine lacks: a runner, loops, hooks, and the counting of multiply-adds.

Imported when a ``mmcontext.`` hook or loop is named.
"""
from . import hooks, loops

__all__ = ['hooks', 'loops']
