"""Context operators for OpenMMLab: CoConv, PyConv, CoT, involution, C-volution, CKConv."""
from mmcontext.utils.checkpoint import register_safe_globals
from mmcontext.utils.packages import (
    leave_out_multimodal,
    register_config_scopes,
    warn_of_other_project,
)
from mmcontext.version import __version__

warn_of_other_project()
# Lets torch >= 2.6 read the checkpoints that mmengine writes in training.
register_safe_globals()
register_config_scopes()
leave_out_multimodal()

__all__ = ['__version__']
