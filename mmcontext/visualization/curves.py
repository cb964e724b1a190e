"""The scalars logged by mmengine in training."""
import json
import os.path as osp
from collections import defaultdict
from glob import escape, glob
from typing import Dict, List, Tuple

from mmcontext.utils.errors import UserError

Curve = Tuple[List[float], List[float]]
_COUNTERS = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory')


def read_curves(work_dir: str) -> Dict[str, Curve]:
    """Curves of a run by name.

    Args:
        work_dir: Folder of the run; if it was started several times, all logs are read, and a
            later one overrides the steps that it repeats (``--resume``).

    Returns:
        Name to (steps, values), sorted by step. Steps of training are iterations; those of
        validation have the unit of its log, usually epochs.

    Raises:
        UserError: There are no logs, or they cannot be read.
    """
    files = sorted(glob(osp.join(escape(work_dir), '*', 'vis_data', 'scalars.json')))
    if not files:
        raise UserError(f'{work_dir} holds no log of mmengine (*/vis_data/scalars.json)')
    found: Dict[str, Dict[float, float]] = defaultdict(dict)
    for file in files:
        with open(file) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    if line.endswith('\n'):
                        raise UserError(f'{file}, line {number}: no JSON: {error}') from error
                    continue  # the last line of a killed run
                for name, value in record.items():
                    if name not in _COUNTERS and isinstance(value, (int, float)):
                        found[name][record['step']] = value
    return {name: tuple(map(list, zip(*sorted(points.items()))))
            for name, points in found.items()}


def panels(curves: Dict[str, Curve]) -> Dict[str, List[str]]:
    """The names of the curves by panel: loss, lr, and one for every metric."""
    grouped: Dict[str, List[str]] = defaultdict(list)
    for name in curves:
        if name.startswith('loss') or '.loss' in name:
            grouped['loss'].append(name)
        elif name == 'lr':
            grouped['lr'].append(name)
        elif name not in ('base_lr', 'grad_norm'):
            grouped[name].append(name)
    return grouped
