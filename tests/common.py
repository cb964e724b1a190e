"""Helpers shared by the tests of several folders."""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# Every context operator, in the form used by necks and heads.
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

# Millions of parameters with 1000 classes, counted on the authors' networks.
MILLIONS = {
    ('CoResNet', 50): 25.557, ('CoResNet', 101): 44.549, ('CoResNet', 152): 60.193,
    ('PyConvResNet', 18): 5.912, ('PyConvResNet', 34): 11.091, ('PyConvResNet', 50): 24.848,
    ('PyConvResNet', 101): 42.308, ('PyConvResNet', 152): 56.641,
    ('PyConvHGResNet', 50): 25.235, ('PyConvHGResNet', 101): 44.627,
    ('PyConvHGResNet', 152): 60.658,
    ('CoTNet', 50): 22.222, ('CoTNet', 101): 38.272,
    ('CoTNeXt', 50): 30.046, ('CoTNeXt', 101): 53.346,
    ('SECoTNetD', 50): 23.108, ('SECoTNetD', 101): 40.912, ('SECoTNetD', 152): 55.784,
    ('RedNet', 26): 9.233, ('RedNet', 38): 12.387, ('RedNet', 50): 15.541,
    ('RedNet', 101): 25.653, ('RedNet', 152): 33.985,
    ('CedNet', 26): 9.551, ('CedNet', 38): 12.900, ('CedNet', 50): 16.250,
    ('CedNet', 101): 26.990, ('CedNet', 152): 35.839,
}


def since_torch(version: str, what: str):
    """Mark for a test of a feature that torch has since a version."""
    return pytest.mark.skipif(torch.__version__ < version,
                              reason=f'{what}: from torch {version} on')


# Dynamo of torch 2.3 fails at environment variables that are not set; 2.4 has not been tried.
COMPILES = since_torch('2.5', 'torch.compile of the layers')


def load_tool(path: str) -> ModuleType:
    """A script in tools/, which is not a package, as a module."""
    file = ROOT / 'tools' / path
    if str(ROOT / 'tools') not in sys.path:
        sys.path.append(str(ROOT / 'tools'))  # as when it is run, for its imports
    spec = importlib.util.spec_from_file_location(f'tools_{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
