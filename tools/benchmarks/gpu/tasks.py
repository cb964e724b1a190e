"""The tasks of the campaign, most valuable first."""
from typing import NamedTuple, Tuple


class Task(NamedTuple):
    """One process of the campaign.

    Args:
        name: Name, also of its entry in ``campaign.json``.
        part: Letter of the part.
        function: ``module:function``, called with a record and the options.
        limit: Seconds after which it is killed; its results up to then are kept.
        least: Seconds that must be left for it to be worth starting.
        needs: Packages without which it cannot run.
        tool: Program that starts the interpreter, with its options.
        resumes: Whether a killed run continues after its last row.
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


# (a) to (c) are about the kernels and fit in four minutes; the rest is about networks.
TASKS = (
    Task('correctness', 'a', 'gpu.correctness:main', 50),
    Task('agreement', 'a', 'gpu.agreement:main', 45, needs=_NETWORKS),
    Task('operators', 'b', 'gpu.operators:main', 60),
    Task('norms', 'b', 'gpu.norms:main', 25),
    Task('gates', 'b', 'gpu.gates:main', 25),
    Task('host', 'b', 'gpu.steps:host', 30),
    Task('fused', 'b', 'gpu.fused:main', 20),
    Task('first_step', 'b', 'gpu.steps:first_step', 45, needs=_NETWORKS),
    Task('sizes', 'b', 'gpu.steps:sizes', 20),
    Task('tiles', 'c', 'gpu.tiles:tiles', 30),
    Task('memcheck', 'a', 'gpu.correctness:sanitized', 25, tool=_sanitizer('memcheck')),
    Task('racecheck', 'a', 'gpu.correctness:sanitized', 25, tool=_sanitizer('racecheck')),
    Task('grouped', 'e', 'gpu.grouped:main', 60),
    Task('networks', 'd', 'gpu.networks:main', 150, 20, _NETWORKS, resumes=True),
    Task('profiles', 'd', 'gpu.profiles:main', 60, 20, _NETWORKS),
    Task('graphs', 'd', 'gpu.graphs:main', 60, 20, _NETWORKS),
    Task('pointwise', 'e', 'gpu.pointwise:main', 20),
    Task('continuous', 'e', 'gpu.continuous:main', 25),
    Task('detection', 'f', 'gpu.detection:main', 90, 20, (*_NETWORKS, 'mmdet')),
    Task('segmentation', 'f', 'gpu.detection:segmentor', 30, 15, (*_NETWORKS, 'mmseg')),
    Task('triton_operators', 'b', 'gpu.operators:triton', 60),
    Task('digits', 'g', 'gpu.training:digits', 120, 40, (*_NETWORKS, 'mmdet', 'mmseg', 'sklearn')),
    Task('precisions', 'd', 'gpu.networks:precisions', 90, 20, _NETWORKS, resumes=True),
    Task('compiled', 'd', 'gpu.networks:compiled', 120, 40, _NETWORKS, resumes=True),
    Task('triton_correctness', 'a', 'gpu.correctness:triton', 25),
    Task('shift_and_add', 'b', 'gpu.operators:compiled', 60),
    Task('cifar10', 'h', 'gpu.training:cifar10', 600, 60, _NETWORKS, resumes=True),
)
PARTS = ''.join(sorted({task.part for task in TASKS}))
