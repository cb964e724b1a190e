"""What mmengine lacks: a runner, loops, hooks, and a counter of multiply-adds.

Imported when a config names a ``mmcontext.`` hook or loop.
"""
from . import hooks, loops

__all__ = ['hooks', 'loops']
