"""What works here and what does not: ``python -m mmcontext.utils.collect_env``.

Versions are those of the imported modules, with the distribution if it is not the usual one; for
every backend of the aggregation it says whether it can be used, or why not.
"""
import importlib
import platform
import sys
from typing import Dict, Iterator

import torch

import mmcontext
from mmcontext.ops import explain
from mmcontext.ops.native_library import UNAVAILABLE, instruction_sets
from mmcontext.utils.packages import DISTRIBUTION, distributions, folder_of

# Module -> its usual distribution.
_PACKAGES = {
    'numpy': 'numpy', 'torchvision': 'torchvision', 'triton': 'triton', 'mmengine': 'mmengine',
    'mmcv': 'mmcv', 'mmpretrain': 'mmpretrain', 'mmdet': 'mmdet', 'mmseg': 'mmsegmentation',
    'transformers': 'transformers', 'onnx': 'onnx', 'onnxruntime': 'onnxruntime',
    'setuptools': 'setuptools',
}


def _package(module: str, usual: str) -> str:
    """Version of a package, by importing it, and its distribution if it is not the usual one."""
    if folder_of(module) is None:
        return 'not installed'
    sources = distributions(module)
    source = '' if usual in sources else f' ({", ".join(sources) or "no distribution"})'
    try:
        version = getattr(importlib.import_module(module), '__version__', 'unknown version')
    except Exception as error:  # a broken installation may raise anything
        return f'cannot be imported{source}: {type(error).__name__}: {error}'
    return f'{version}{source}'


def _mmcv_operators() -> str:
    try:
        importlib.import_module('mmcv.ops')
    except Exception as error:  # no library, or one for another torch
        return f'none, so no mmdet and no mmseg ({type(error).__name__}: {error})'
    return 'there'


def _backends(device: str) -> Iterator[str]:
    """One line for each backend of the aggregation: that it supports a device, or why not."""
    x = torch.zeros(1, 16, 8, 8, device=device)
    w = torch.zeros(1, 1, 9, 8, 8, device=device)
    answer = explain(x, w, 3, padding=1)
    yield f'{answer["chosen"]} serves'
    for name, reason in answer['refused'].items():
        yield f'{name} does not: {reason}'


def collect_env() -> Dict[str, str]:
    """Subject -> description."""
    found = {
        'mmcontext': f'{mmcontext.__version__} in {mmcontext.__path__[0]} '
                     f'({", ".join(distributions("mmcontext")) or f"no {DISTRIBUTION}"})',
        'python': f'{platform.python_version()} on {platform.platform()}',
        'torch': f'{torch.__version__}, CUDA {torch.version.cuda or "none"}',
        'gpu': ', '.join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
               or 'none',
    }
    found.update({module: _package(module, usual) for module, usual in _PACKAGES.items()})
    if folder_of('mmcv') is not None:
        found['operators of mmcv'] = _mmcv_operators()
    found['C++ kernels'] = UNAVAILABLE or f'loaded, for {", ".join(instruction_sets())}'
    for device in ('cpu', 'cuda') if torch.cuda.is_available() else ('cpu', ):
        found[f'aggregation on {device}'] = '; '.join(_backends(device))
    return found


def main() -> int:
    """Command line entry point."""
    for subject, what in collect_env().items():
        print(f'{subject}: {what}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
