"""Necks that need mmengine and mmcv alone."""
from mmcontext.models.necks.context_fpn import ContextFPN

__all__ = ['ContextFPN']
