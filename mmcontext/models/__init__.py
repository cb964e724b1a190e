"""Backbones, necks and heads.

Heads that subclass classes of mmpretrain, mmdet or mmsegmentation are not imported here:
``mmcontext.registry`` loads them when a config names them.
"""
from mmcontext.models import backbones, necks, weight_init

__all__ = ['backbones', 'necks', 'weight_init']
