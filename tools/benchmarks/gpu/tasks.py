"""The tasks of the campaign, most valuable first."""
from typing import NamedTuple, Tuple


class Task(NamedTuple):
    """One process of the campaign.

    Args:
        name: Name, also of its entry in ``campaign.json``.
        part: Letter of the part.
        function: ``module:function`` under this package.
        limit: Seconds after which it is ended; what it has found until then is kept.
        least: Seconds that must be left for it to be worth starting.
        needs: Packages without which it cannot run.
        tool: Program in front of the interpreter, with its options.
        resumes: Whether a run that was cut off goes on behind its last row.
    """
    name: str
    part: str
    function: str
    limit: float
    least: float = 10
    needs: Tuple[str, ...] = ('torch', )
    tool: Tuple[str, ...] = ()
    resumes: bool = False


_NETWORKS = ('torch', 'mmengine', 'mmcv', 'mmpretrain')


def _sanitizer(tool: str) -> Tuple[str, ...]:
    return ('compute-sanitizer', '--tool', tool, '--error-exitcode', '9',
            '--target-processes', 'application-only', '--print-limit', '20')


# (a) to (c) decide about the kernels and fit in four minutes; the rest is about networks.
TASKS = (
    Task('correctness', 'a', 'correctness:main', 50),
    Task('operators', 'b', 'operators:main', 60),
    Task('host', 'b', 'steps:host', 30),
    Task('fused', 'b', 'fused:main', 20),
    Task('first_step', 'b', 'steps:first_step', 45, needs=_NETWORKS),
    Task('sizes', 'b', 'steps:sizes', 20),
    Task('tiles', 'c', 'operators:tiles', 30),
    Task('memcheck', 'a', 'correctness:sanitized', 25, tool=_sanitizer('memcheck')),
    Task('racecheck', 'a', 'correctness:sanitized', 25, tool=_sanitizer('racecheck')),
    Task('networks', 'd', 'networks:main', 150, 20, _NETWORKS, resumes=True),
    Task('grouped', 'e', 'grouped:main', 40),
    Task('detection', 'f', 'detection:main', 90, 20, (*_NETWORKS, 'mmdet')),
    Task('segmentation', 'f', 'detection:segmentor', 30, 15, (*_NETWORKS, 'mmseg')),
    Task('triton_operators', 'b', 'operators:triton', 60),
    Task('digits', 'g', 'training:digits', 120, 40, (*_NETWORKS, 'mmdet', 'mmseg', 'sklearn')),
    Task('precisions', 'd', 'networks:precisions', 90, 20, _NETWORKS, resumes=True),
    Task('compiled', 'd', 'networks:compiled', 120, 40, _NETWORKS, resumes=True),
    Task('triton_correctness', 'a', 'correctness:triton', 25),
    Task('shift_and_add', 'b', 'operators:compiled', 60),
    Task('cifar10', 'h', 'training:cifar10', 600, 60, _NETWORKS, resumes=True),
)
PARTS = ''.join(sorted({task.part for task in TASKS}))
