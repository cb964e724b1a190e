"""Conversion of the authors' checkpoints to those of this package."""
from mmcontext.converters.architectures import ARCHITECTURES, Architecture
from mmcontext.converters.ccnn import CCNN_ARCH, convert_ccnn
from mmcontext.converters.convert import convert_checkpoint, convert_state_dict

__all__ = [
    'ARCHITECTURES', 'Architecture', 'CCNN_ARCH', 'convert_ccnn', 'convert_checkpoint',
    'convert_state_dict'
]
