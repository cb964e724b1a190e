"""Data sets and transforms that the mm libraries lack; all read local files only."""
from mmcontext.datasets.segmentation_transforms import RandomGaussianBlur, RandomScale
from mmcontext.datasets.sequence_transforms import ImageToSequence, mfcc

__all__ = ['ImageToSequence', 'RandomGaussianBlur', 'RandomScale', 'mfcc']
