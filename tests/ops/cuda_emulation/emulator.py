"""Compiles the planner and the CUDA kernels with g++ and runs launches on the CPU."""
import ctypes
import hashlib
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Tuple

import torch
from torch import Tensor

import mmcontext.ops

HERE = Path(__file__).resolve().parent
CSRC = Path(mmcontext.ops.__file__).resolve().parent / 'csrc'
TASKS = ('forward', 'grad_input', 'grad_weight')
STORAGES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Capability, multiprocessors, shared memory of a block and of a multiprocessor, in bytes.
H200 = (90, 132, 232448, 233472)
# Entry function -> its parameter's type.
PARAMETERS = {'aggregate_general': 'GeneralParameters', 'aggregate_tiled': 'TiledParameters',
              'batch_norm': 'BatchNormParameters', 'grouped_map': 'GroupedParameters',
              'grouped_weight': 'GroupedParameters', 'grouped_sum': 'GroupedSumParameters',
              'avg_pool': 'AvgPoolParameters', 'channel_gate': 'ChannelGateParameters',
              'group_norm': 'GroupNormParameters'}


class Launch(NamedTuple):
    source: str
    defines: str
    entry: str
    grid: Tuple[int, int, int]
    block: int
    shared_bytes: int
    parameters: bytes


def five_strides(tensor: Tensor, taps: bool) -> List[int]:
    """Strides as [batch, channel or group, tap, row, column]."""
    strides = list(tensor.stride())
    return strides if taps else [*strides[:2], 0, *strides[2:]]


def _compile(arguments: List[str], folder: Path, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """Compile to a library named after the arguments and all sources."""
    sources = sorted(path for where in (CSRC, CSRC / 'cuda', HERE) for path in where.iterdir()
                     if path.suffix in ('.cpp', '.cu', '.cuh', '.h'))
    text = ' '.join(arguments) + ''.join(path.read_text() for path in sources)
    library = folder / f'{hashlib.sha256(text.encode()).hexdigest()[:16]}.so'
    if not library.exists():
        subprocess.run(['g++', '-std=c++17', '-O0', '-shared', '-fPIC', *arguments, '-o',
                        str(library)], check=True)
    return ctypes.CDLL(str(library), mode)


class Emulator:
    """Plans and runs aggregations as a GPU would.

    Args:
        folder: Folder for compiled kernels.
        device: Capability, multiprocessors, shared memory per block and per multiprocessor.
    """

    def __init__(self, folder: Path, device: Tuple[int, int, int, int] = H200) -> None:
        self.folder, self.device = Path(folder), device
        # Kernels find the machine among the global names.
        self._machine = _compile([f'-I{CSRC / "cuda"}', str(HERE / 'machine.cpp')], self.folder,
                                 ctypes.RTLD_GLOBAL)
        self._kernels: Dict[Tuple[str, str, str], ctypes.CDLL] = {}
        self._planner = _compile(
            ['-Wall', '-Wextra', '-Werror', f'-I{CSRC}', *map(str, sorted(CSRC.glob('cuda_*.cpp'))),
             str(HERE / 'planner.cpp')], self.folder)
        for name in ('source', 'defines', 'entry'):
            getattr(self._planner, f'launch_{name}').restype = ctypes.c_char_p
        self._planner.launch_parameters.restype = ctypes.c_void_p
        self._planner.set_tiles.restype = self._planner.tile_line.restype = ctypes.c_char_p
        self._planner.tile_microseconds.restype = ctypes.c_double

    def set_tiles(self, text: str) -> None:
        """Give the planner tuned tiles; raises ValueError with its message."""
        error = self._planner.set_tiles(text.encode())
        if error:
            raise ValueError(error.decode())

    def _numbers(self, task: str, source: Tensor, kernel: Tensor, target: Tensor,
                 channels_groups: Tuple[int, int], sizes: Tuple[int, int, int, int],
                 geometry: Tuple) -> ctypes.Array:
        numbers = [TASKS.index(task), STORAGES.index(source.dtype)]
        for tensor in (source, kernel, target):
            numbers += [tensor.data_ptr(), *five_strides(tensor, tensor.dim() == 5)]
        kernel_size, stride, padding, dilation, interleaved = geometry
        numbers += [source.shape[0], *channels_groups, *sizes, *kernel_size, *stride, *padding,
                    *dilation, int(interleaved), *self.device]
        return (ctypes.c_longlong * len(numbers))(*numbers)

    def plan(self, *problem) -> List[Launch]:
        """Launches for a task and its operands in the planner's order.

        Args:
            problem: Task's name, source, kernel, target, (channels, groups), (rows, columns of
                x, of y), geometry as in local_aggregation.
        """
        launches = []
        for i in range(self._planner.plan(self._numbers(*problem))):
            data = (ctypes.c_uint * 6)()
            self._planner.launch_sizes(i, data)
            launches.append(Launch(
                *(getattr(self._planner, f'launch_{name}')(i).decode()
                  for name in ('source', 'defines', 'entry')),
                tuple(data[:3]), data[3], data[4],
                ctypes.string_at(self._planner.launch_parameters(i), data[5])))
        return launches

    def tiles(self, *problem) -> List[Tuple[str, float]]:
        """Lines for set_tiles and estimated microseconds, best first; arguments as for plan."""
        return [(self._planner.tile_line(i).decode(), self._planner.tile_microseconds(i))
                for i in range(self._planner.list_tiles(self._numbers(*problem)))]

    def compile(self, launches: Iterable[Launch]) -> None:
        """Compile all distinct kernels of the launches, two at a time."""
        wanted = {(of.source, of.defines, of.entry) for of in launches} - set(self._kernels)
        with ThreadPoolExecutor(2) as pool:
            for key, library in zip(wanted, pool.map(self._compile_kernel, wanted)):
                self._kernels[key] = library

    def _compile_kernel(self, key: Tuple[str, str, str]) -> ctypes.CDLL:
        source, defines, entry = key
        library = _compile(
            ['-DMMCONTEXT_EMULATION', f'-DSOURCE="{source}"', f'-DENTRY={entry}',
             f'-DPARAMETERS={PARAMETERS[entry]}', *shlex.split(defines), f'-I{CSRC / "cuda"}',
             f'-I{HERE}', str(HERE / 'kernel.cpp')], self.folder)
        library.launch.restype = ctypes.c_char_p
        return library

    def run(self, launches: Iterable[Launch], reads: Iterable[Tensor],
            writes: Iterable[Tensor]) -> None:
        """Run launches; raises RuntimeError for errors that would be fatal on a GPU."""
        ranges = []
        for tensor, writable in [(t, 0) for t in reads] + [(t, 1) for t in writes]:
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
            size = (last + 1) * tensor.element_size() if tensor.numel() else 0
            ranges += [tensor.data_ptr(), tensor.data_ptr() + size, writable]
        self.compile(launches)
        for launch in launches:
            error = self._kernels[launch.source, launch.defines, launch.entry].launch(
                (ctypes.c_uint * 3)(*launch.grid), launch.block, launch.shared_bytes,
                launch.parameters, ctypes.c_ulonglong(len(launch.parameters)),
                (ctypes.c_ulonglong * len(ranges))(*ranges), len(ranges) // 3)
            if error:
                raise RuntimeError(f'{launch.source} {launch.defines} grid {launch.grid} block '
                                   f'{launch.block}: {error.decode()}')
