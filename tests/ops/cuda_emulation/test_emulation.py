"""The CUDA kernels and their planner on the CPU: numbers, addresses, barriers, tails."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from cases import BF16, DOUBLE, FLOAT, HALF, Case, gradient_like, make, tolerance  # noqa: E402
from emulator import Emulator  # noqa: E402

GENERAL = [
    Case(DOUBLE, (2, 6, 5, 7), 2, (3, 3), padding=(1, 1)),
    Case(FLOAT, (2, 6, 9, 8), 3, (4, 2), (2, 3), (1, 0), (1, 2), interleaved=True),
    Case(BF16, (1, 4, 6, 5), 4, (3, 5), (1, 2), (2, 3), maps='transposed', kernels='expanded'),
    Case(HALF, (2, 6, 5, 5), 1, (2, 2), maps='expanded', kernels='chunk'),
    Case(DOUBLE, (2, 4, 5, 6), 2, (3, 3), (2, 2), (2, 2), interleaved=True, maps='pixel',
         kernels='pixel'),
]


def square(dtype, size, groups, kernel, stride=1, dilation=1, padding=None, **options) -> Case:
    """A case that the tiled kernels serve."""
    same = dilation * (kernel - 1) // 2
    return Case(dtype, size, groups, (kernel,) * 2, (stride,) * 2,
                (same if padding is None else padding,) * 2, (dilation,) * 2, **options)


TILED = [
    square(FLOAT, (1, 32, 12, 16), 2, 7),
    square(FLOAT, (2, 32, 7, 7), 2, 7),
    square(BF16, (1, 32, 14, 14), 2, 7, interleaved=True),
    square(FLOAT, (1, 16, 13, 20), 1, 7, stride=2),
    square(BF16, (2, 16, 9, 9), 1, 5, stride=2, dilation=2),
    square(HALF, (1, 16, 9, 12), 2, 3, dilation=2, interleaved=True),
    square(FLOAT, (2, 3, 6, 10), 1, 3, stride=2, maps='chunk', kernels='chunk'),
    square(FLOAT, (1, 40, 5, 8), 2, 3, padding=0),
    square(FLOAT, (1, 4, 8, 8), 4, 5),
    square(BF16, (2, 32, 8, 8), 2, 7, maps='pixel'),
    square(FLOAT, (2, 16, 6, 7), 2, 3, maps='pixel', kernels='pixel'),
    square(HALF, (1, 32, 10, 9), 2, 7, stride=2, maps='pixel', kernels='pixel'),
]


@pytest.fixture(scope='module')
def emulator(tmp_path_factory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp('emulated'))


def solve(emulator: Emulator, case: Case, data: dict) -> dict:
    """y, gx and gw of the emulated kernels, and the launches that made each."""
    sizes = (*case.size[2:], *data['y'].shape[2:])
    results = {}
    for task, source, kernel, target, layout in (
            ('forward', 'x', 'w', 'y', case.maps), ('grad_input', 'gy', 'w', 'gx', case.maps),
            ('grad_weight', 'x', 'gy', 'gw', case.kernels)):
        output = gradient_like(data[target].shape, case, layout)
        launches = emulator.plan(task, data[source], data[kernel], output,
                                 (case.size[1], case.groups), sizes, case.geometry)
        results[target] = (output, launches, (data[source], data[kernel]))
    emulator.compile(launch for _, launches, _ in results.values() for launch in launches)
    for output, launches, reads in results.values():
        emulator.run(launches, reads, [output])
    return results


def check(emulator: Emulator, case: Case) -> dict:
    data = make(case)
    results = solve(emulator, case, data)
    for name, (output, _, _) in results.items():
        torch.testing.assert_close(output.double(), data[name], **tolerance(case, data[name]),
                                   msg=lambda text, name=name: f'{name} of {case}: {text}')
    return results


@pytest.mark.parametrize('case', GENERAL, ids=str)
def test_general_kernels(emulator, case):
    results = check(emulator, case)
    assert {launch.source for _, launches, _ in results.values() for launch in launches} == \
        {'general.cu'}


@pytest.mark.parametrize('case', TILED, ids=str)
def test_tiled_kernels(emulator, case):
    results = check(emulator, case)
    general = [name for name, (_, launches, _) in results.items()
               if launches[0].source == 'general.cu']
    # Gradients of x are tiled for the padding that keeps the size at stride 1.
    assert general == (['gx'] if case.padding[0] == 0 else [])
