"""Hooks and the runner that mmengine lacks; imported when a ``mmcontext.`` hook is named."""
from . import hooks

__all__ = ['hooks']
