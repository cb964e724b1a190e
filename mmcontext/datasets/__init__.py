"""Sequence data sets and transforms that mmpretrain lacks; all read local files only."""
from mmcontext.datasets.sequence_transforms import ImageToSequence, mfcc

__all__ = ['ImageToSequence', 'mfcc']
