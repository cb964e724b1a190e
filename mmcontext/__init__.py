"""Context operators for OpenMMLab: CoConv, PyConv, CoT, involution, C-volution, CKConv."""
from mmcontext.utils.checkpoint import register_safe_globals
from mmcontext.version import __version__

# Lets torch >= 2.6 read the checkpoints that mmengine writes in training.
register_safe_globals()

__all__ = ['__version__']
