"""What tests of several folders share."""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# Every context operator, as the necks and heads take it.
CONTEXT_OPERATORS = [
    dict(type='mmcontext.CoConv2d', bias=True),
    dict(type='mmcontext.PyConv2d', levels=2, bias=True),
    dict(type='mmcontext.CoT2d'),
    dict(type='mmcontext.CoT2d', cardinality=2),
    dict(type='mmcontext.Involution2d'),
    dict(type='mmcontext.CVolution2d', gate_groups=4),
    dict(type='mmcontext.SeparableFlexConv2d', kernel_size=9, mask_cfg=dict(init=0.3),
         kernel_cfg=dict(type='MAGNet', hidden_channels=4, omega_0=100.)),
]


def since_torch(version: str, what: str):
    """Mark of a test about what torch has from a version on."""
    return pytest.mark.skipif(torch.__version__ < version,
                              reason=f'{what}: from torch {version} on')


# Dynamo of torch 2.1 can trace neither the layers' Python nor that of the modules in them.
COMPILES = since_torch('2.2', 'torch.compile of the layers')


def load_tool(path: str) -> ModuleType:
    """A script under tools/, which is no package, as a module."""
    file = ROOT / 'tools' / path
    if str(ROOT / 'tools') not in sys.path:
        sys.path.append(str(ROOT / 'tools'))  # as when it is run, for what lies beside it
    spec = importlib.util.spec_from_file_location(f'tools_{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
