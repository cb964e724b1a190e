"""Registries of mmcontext, children of mmengine's with scope ``mmcontext``.

mmengine imports this module automatically when it encounters a type such as
``mmcontext.CedNet``, and then the packages named in ``locations``, so configs
need no ``custom_imports``.
"""
import importlib
from typing import Dict, Optional, Tuple

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from mmcontext.utils.errors import required

# Models that subclass a class of an optional package: name -> (package, pip name, module).
# Their modules are imported when the name is first used, because importing mmdet or
# mmseg takes seconds and neither need be installed.
_OPTIONAL_MODELS = {
    **dict.fromkeys(('DropoutClsHead', 'LinearClsHead'),
                    ('mmpretrain', 'mmpretrain', 'mmcontext.models.heads.dropout_cls_head')),
    'BinaryClsHead': ('mmpretrain', 'mmpretrain', 'mmcontext.models.heads.binary_cls_head'),
    'ContextRPNHead': ('mmdet', 'mmdet', 'mmcontext.models.heads.context_rpn_head'),
    'ContextFCNMaskHead': ('mmdet', 'mmdet', 'mmcontext.models.heads.context_fcn_mask_head'),
    'ContextConvFCBBoxHead': ('mmdet', 'mmdet', 'mmcontext.models.heads.context_bbox_head'),
    'PyConvHead': ('mmseg', 'mmsegmentation', 'mmcontext.models.heads.pyconv_head'),
    **dict.fromkeys(('TorchInitFCNHead', 'FCNHead'),
                    ('mmseg', 'mmsegmentation', 'mmcontext.models.heads.torch_init_fcn_head')),
    'ContextFCNHead': ('mmseg', 'mmsegmentation', 'mmcontext.models.heads.context_fcn_head'),
}


# The same for data sets and pixel samplers.
_OPTIONAL_DATASETS = {
    name: ('mmpretrain', 'mmpretrain', f'mmcontext.datasets.{module}')
    for name, module in (('LRAListOps', 'long_range_arena'), ('LRAPathfinder', 'long_range_arena'),
                         ('LRAText', 'long_range_arena'), ('STL10', 'stl10'),
                         ('SpeechCommands', 'speech_commands'), ('ModelNet', 'modelnet'))
}


_OPTIONAL_TASK_UTILS = {
    'ClassWeightSampler': ('mmseg', 'mmsegmentation',
                           'mmcontext.models.heads.class_weight_sampler'),
}


class _OptionalRegistry(Registry):
    """Registry that imports the modules of optional packages on demand.

    Args:
        optional: Name to (package, pip name, module), see above.
        *args, **kwargs: See mmengine's ``Registry``.
    """

    def __init__(self, *args, optional: Dict[str, Tuple[str, str, str]], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._optional = optional

    def get(self, key: str) -> Optional[type]:
        scope, name = self.split_scope_key(key)
        if scope in (None, self.scope) and name in self._optional \
                and name not in self._module_dict:
            package, pip_name, module = self._optional[name]
            required(package, f'mmcontext.{name} needs', pip_name, ImportError)
            importlib.import_module(module)
        return super().get(key)


MODELS = _OptionalRegistry('model', parent=MMENGINE_MODELS, scope='mmcontext',
                           locations=['mmcontext.layers', 'mmcontext.models'],
                           optional=_OPTIONAL_MODELS)
DATASETS = _OptionalRegistry('dataset', parent=MMENGINE_DATASETS, scope='mmcontext',
                             locations=['mmcontext.datasets'], optional=_OPTIONAL_DATASETS)
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmcontext',
                      locations=['mmcontext.datasets'])
TASK_UTILS = _OptionalRegistry('task util', parent=MMENGINE_TASK_UTILS, scope='mmcontext',
                               locations=['mmcontext.models'], optional=_OPTIONAL_TASK_UTILS)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmcontext',
                 locations=['mmcontext.engine'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmcontext',
                 locations=['mmcontext.engine'])
RUNNERS = Registry('runner', parent=MMENGINE_RUNNERS, scope='mmcontext',
                   locations=['mmcontext.engine.runner'])
WEIGHT_INITIALIZERS = Registry('weight initializer', parent=MMENGINE_WEIGHT_INITIALIZERS,
                               scope='mmcontext', locations=['mmcontext.models'])
