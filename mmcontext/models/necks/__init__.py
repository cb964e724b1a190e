"""Necks that need only mmengine and mmcv."""
from mmcontext.models.necks.context_fpn import ContextFPN

__all__ = ['ContextFPN']
