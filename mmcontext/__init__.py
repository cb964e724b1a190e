"""Context operators for OpenMMLab: CoConv, PyConv, CoT, involution, C-volution, CKConv."""
import importlib

from mmcontext.integration import register
from mmcontext.utils.checkpoint import register_safe_globals
from mmcontext.utils.packages import leave_out_multimodal, warn_of_other_project
from mmcontext.version import __version__

warn_of_other_project()
# Lets torch >= 2.6 read the training checkpoints of mmengine.
register_safe_globals()
leave_out_multimodal()
# Adds this package's names and file formats to the mm libraries once those are imported.
register()

# Imported on first use, because networks import mmcv.
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
