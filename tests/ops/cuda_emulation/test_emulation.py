"""The CUDA kernels and their planner on the CPU: results, addresses, barriers, tails."""
import os
import struct
import sys
from pathlib import Path

import pytest
import torch
from tolerances import assert_close

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
    """A case supported by the tiled kernels."""
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
    square(BF16, (2, 64, 6, 9), 8, 3, interleaved=True, maps='pixel'),
    square(FLOAT, (1, 30, 7, 8), 6, 3, interleaved=True, maps='pixel', kernels='pixel'),
]


@pytest.fixture(scope='module')
def emulator(tmp_path_factory) -> Emulator:
    """Kernels compiled once per module, or once for all if a folder is given."""
    folder = os.environ.get('MMCONTEXT_EMULATION_DIR')
    return Emulator(Path(folder) if folder else tmp_path_factory.mktemp('emulated'))


def problems(case: Case, data: dict) -> dict:
    """Name of the result -> arguments of Emulator.plan, the last but two being the output."""
    sizes = (*case.size[2:], *data['y'].shape[2:])
    return {
        target: (task, data[source], data[kernel],
                 gradient_like(data[target].shape, case, layout), (case.size[1], case.groups),
                 sizes, case.geometry)
        for task, source, kernel, target, layout in (
            ('forward', 'x', 'w', 'y', case.maps), ('grad_input', 'gy', 'w', 'gx', case.maps),
            ('grad_weight', 'x', 'gy', 'gw', case.kernels))}


def check(emulator: Emulator, case: Case, data: dict) -> dict:
    """Compare y, gx and gw with their references; returns the launches for each."""
    asked = problems(case, data)
    launches = {name: emulator.plan(*problem) for name, problem in asked.items()}
    emulator.compile(launch for some in launches.values() for launch in some)
    for name, (_, source, kernel, target, *_) in asked.items():
        emulator.run(launches[name], [source, kernel], [target])
        assert_close(target.double(), data[name], **tolerance(case, data[name]),
                     msg=lambda text, name=name: f'{name} of {case}: {text}')
    return launches


@pytest.mark.parametrize('case', GENERAL, ids=str)
def test_general_kernels(emulator, case):
    launches = check(emulator, case, make(case))
    assert {launch.source for some in launches.values() for launch in some} == {'general.cu'}


@pytest.mark.parametrize('case', TILED, ids=str)
def test_tiled_kernels(emulator, case):
    launches = check(emulator, case, make(case))
    general = [name for name, some in launches.items() if some[0].source == 'general.cu']
    # Gradients of x are tiled for the padding that preserves the size at stride 1.
    assert general == (['gx'] if case.padding[0] == 0 else [])


def test_every_tile_gives_the_same(emulator):
    case = square(FLOAT, (1, 48, 13, 20), 3, 7)
    data = make(case)
    lines = [emulator.tiles(*problem) for problem in problems(case, data).values()]
    for i in range(0, min(map(len, lines)), 7):
        emulator.set_tiles('\n'.join(some[i][0] for some in lines))
        check(emulator, case, data)
    emulator.set_tiles('')


def test_tuned_tiles_are_used_and_checked(emulator):
    case = square(FLOAT, (1, 32, 8, 16), 2, 7)
    problem = problems(case, make(case))['y']
    line = 'forward float32 7 1 1 planar 16 8 16 2  3 2 2'
    emulator.set_tiles(f'# tuned\n\n{line} # by hand\n')
    assert emulator.plan(*problem)[0].grid == (6, 1, 1)
    emulator.set_tiles('')
    assert emulator.plan(*problem)[0].grid != (6, 1, 1)
    for wrong, complaint in ((line + ' 5', 'numbers'), (line.replace('7', 'x'), 'numbers'),
                             (line.replace('forward', 'back'), 'task'),
                             (line.replace('float32', 'float64'), 'storage'),
                             (line.replace('planar', 'flat'), 'layout'),
                             (line.replace('  3 2', '  0 2'), 'extent')):
        with pytest.raises(ValueError, match=f'line 2 .*{complaint}'):
            emulator.set_tiles(f'{line}\n{wrong}')


@pytest.mark.parametrize('dimension, source', [(0, 'local_aggregation.cu'), (1, 'general.cu')],
                         ids=['batch', 'channel'])
def test_offsets_beyond_32_bits(emulator, dimension, source):
    case = square(BF16, (2, 2, 5, 8), 1, 3)
    data = make(case)
    strides = list(data['x'].stride())
    strides[dimension] = 2 ** 31
    # Only the pages that are written are ever allocated.
    room = torch.empty(2 ** 31 * (case.size[dimension] - 1) + 4096, dtype=BF16)
    data['x'] = room.as_strided(case.size, strides).copy_(data['x'])
    launches = check(emulator, case, data)
    assert launches['y'][0].source == launches['gw'][0].source == source


def test_batches_beyond_the_grid_take_more_launches(emulator):
    case = square(FLOAT, (70000, 8, 4, 4), 1, 3)
    x, w = (torch.empty(shape, device='meta') for shape in (case.size, (70000, 1, 9, 4, 4)))
    launches = emulator.plan('forward', x, w, x, (8, 1), (4, 4, 4, 4), case.geometry)
    assert [launch.grid[2] for launch in launches] == [65535, 4465]
    addresses = [struct.unpack_from('Q', launch.parameters)[0] for launch in launches]
    assert addresses[1] - addresses[0] == 65535 * 8 * 4 * 4 * x.element_size()
