"""Context operators for OpenMMLab: CoConv, PyConv, CoT, involution, C-volution, CKConv."""
import importlib

from mmcontext.integration import register
from mmcontext.utils.checkpoint import register_safe_globals
from mmcontext.utils.packages import leave_out_multimodal, warn_of_other_project
from mmcontext.version import __version__

warn_of_other_project()
# Lets torch >= 2.6 read the checkpoints that mmengine writes in training.
register_safe_globals()
leave_out_multimodal()
# Names and file formats of this package in the mm libraries, as soon as those are imported.
register()

# Imported when first asked for, because networks bring mmcv along.
_LAZY = {
    'create_model': 'mmcontext.zoo.create',
    'list_models': 'mmcontext.zoo.index',
    'get_config': 'mmcontext.zoo.index',
    'HubModel': 'mmcontext.zoo.hub',
}

__all__ = ['__version__', *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list:
    return [*globals(), *_LAZY]
