"""Which implementations of the aggregation this machine has, and their compilation counts."""
import importlib
from types import ModuleType
from typing import Dict, List, Optional

import torch

from mmcontext.ops import explain

# Timed and tested if available; the first is what should be chosen by default on a GPU.
BACKENDS = ('cuda', 'triton', 'torch')


def cuda_module() -> Optional[ModuleType]:
    """The module of the CUDA backend, or None if this version has none."""
    try:
        return importlib.import_module('mmcontext.ops.local_aggregation.cuda')
    except ImportError:
        return None


def compilations() -> Optional[int]:
    """CUDA kernels compiled in this process, or None if this version has none."""
    try:
        return importlib.import_module('mmcontext.ops.gpu_kernels').compilations()
    except ImportError:
        return None


def refusals(device: str) -> Dict[str, str]:
    """Backend -> why it does not support a small float32 aggregation; '' if it does."""
    x = torch.zeros(1, 16, 8, 8, device=device)
    w = torch.zeros(1, 1, 9, 8, 8, device=device)
    reasons = {}
    for name in BACKENDS:
        try:
            explain(x, w, 3, padding=1, backend=name)
            reasons[name] = ''
        except (RuntimeError, ValueError) as error:
            reasons[name] = str(error)
    return reasons


def available(device: str) -> List[str]:
    """The backends that can be used."""
    return [name for name, reason in refusals(device).items() if not reason]


def chosen(device: str) -> str:
    """The backend that a call without a name uses."""
    x = torch.zeros(1, 16, 8, 8, device=device)
    return explain(x, torch.zeros(1, 1, 9, 8, 8, device=device), 3, padding=1)['chosen']
