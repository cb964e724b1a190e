"""What the CUDA kernels of local_aggregation compile to, without a GPU.

Every kernel that the planner chooses for a list of network shapes is compiled by NVRTC (which
comes with CUDA builds of torch) and tabulated: registers, spills, shared memory, occupancy, widths
of memory accesses, and the planner's estimate next to the memory floor. Machine code is analysed
if a disassembler is found (``pip install nvidia-cuda-nvdisasm``, or --nvdisasm), PTX otherwise.
The planner is compiled by g++ from the sources of a checkout.

    python tools/benchmarks/inspect_kernels.py --arch sm_80 sm_90 --out kernels.md
"""
import argparse
import ctypes
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / 'mmcontext/ops/csrc/cuda'
sys.path.insert(0, str(ROOT / 'tests/ops/cuda_emulation'))
from emulator import H200, TASKS, Emulator  # noqa: E402

BANDWIDTH = 4.15e6  # bytes per microsecond, a copy on an H200
# Name -> batch, channels, rows, columns, kernel, stride, channels per group, interleaved.
SHAPES = {
    'stem': (32, 32, 112, 112, 7, 1, 16, False),
    'CedNet-50 stage 1': (32, 64, 56, 56, 7, 1, 16, False),
    'stage 2 first': (32, 128, 56, 56, 7, 2, 16, False),
    'stage 2': (32, 128, 28, 28, 7, 1, 16, False),
    'stage 3': (32, 256, 14, 14, 7, 1, 16, False),
    'stage 4': (32, 512, 7, 7, 7, 1, 16, False),
    'CoTNet-50 stage 1': (32, 64, 56, 56, 3, 1, 8, True),
    'CoTNet-50 stage 3': (32, 256, 14, 14, 3, 1, 8, True),
    'FPN level': (2, 256, 200, 304, 7, 1, 16, False),
}
# The usual forms in training: float32 planar, half precision channels-last.
FORMS = ((torch.float32, False), (torch.bfloat16, True))


class Compiled(NamedTuple):
    """Machine code of one kernel: ptxas figures and instruction counts."""

    registers: int
    spilled: int                 # bytes
    instructions: Counter        # by name and width, of machine code or of PTX
    inner: Counter               # of the loop with most multiply-adds; empty for PTX


def _packages() -> Path:
    return Path(torch.__file__).resolve().parents[1] / 'nvidia'


def find_nvrtc() -> Optional[Path]:
    """NVRTC's library among torch's packages, or None."""
    found = sorted(path for path in _packages().glob('*/lib/libnvrtc.so.*')
                   if 'alt' not in path.name)
    return found[-1] if found else None


def find_disassembler() -> Optional[str]:
    """nvdisasm on the path or among the packages, or None."""
    found = sorted(map(str, _packages().glob('*/bin/nvdisasm')))
    return shutil.which('nvdisasm') or (found[-1] if found else None)


class Nvrtc:
    """Compiles kernels at run time as the operators do: only our own headers, C++17."""

    def __init__(self, library: Path) -> None:
        for builtins in sorted(library.parent.glob('libnvrtc-builtins.so.*')):
            ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        self._nvrtc = ctypes.CDLL(str(library))

    def _fetch(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._nvrtc, f'nvrtcGet{what}Size')(program, ctypes.byref(size))
        data = ctypes.create_string_buffer(size.value)
        getattr(self._nvrtc, f'nvrtcGet{what}')(program, data)
        return data.raw

    def compile(self, source: str, defines: str, arch: str) -> Tuple[bytes, str]:
        """Cubin (arch sm_NN) or PTX (compute_NN), and the compiler's log.

        Raises:
            RuntimeError: The source does not compile; the message is the compiler's.
        """
        headers = sorted(CUDA.glob('*.cuh'))
        program = ctypes.c_void_p()
        self._nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), (CUDA / source).read_bytes(), source.encode(), len(headers),
            (ctypes.c_char_p * len(headers))(*(path.read_bytes() for path in headers)),
            (ctypes.c_char_p * len(headers))(*(path.name.encode() for path in headers)))
        options = ['--std=c++17', f'-arch={arch}', '--ptxas-options=-v', *defines.split()]
        failed = self._nvrtc.nvrtcCompileProgram(
            program, len(options),
            (ctypes.c_char_p * len(options))(*(option.encode() for option in options)))
        log = self._fetch(program, 'ProgramLog').rstrip(b'\0').decode()
        code = b'' if failed else self._fetch(program, 'PTX' if 'compute' in arch else 'CUBIN')
        self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        if failed:
            raise RuntimeError(f'{source} {defines} {arch}: {log}')
        return code, log


def count_ptx(text: str) -> Counter:
    """Memory accesses in PTX, as in ``ld.global.v4``, with the bytes of each."""
    pattern = re.compile(r'\b(ld|st)\.(?:volatile\.)?(global|shared)(?:\.nc)?'
                         r'(?:\.(v[24]))?\.[busf](8|16|32|64)\b|\bcp\.async\.c[ag]\.\S+ .*?'
                         r'\], (16|8|4),')
    counts = Counter()
    for op, space, vector, bits, copied in pattern.findall(text):
        name = f'{op}.{space}' if op else 'cp.async'
        width = int(copied) if copied else int(bits) // 8 * int(vector[1:] or 1)
        counts[f'{name} {width}'] += 1
    return counts


def count_sass(text: str) -> Tuple[Counter, Counter]:
    """Instructions of machine code, and of its loop with the most multiply-adds."""
    lines, labels = [], {}
    for line in text.splitlines():
        label = re.match(r'(\.L_x_\d+):', line)
        code = re.match(r'\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][^;]*)', line)
        if label:
            labels[label[1]] = len(lines)
        elif code:
            lines.append(code[1])
    names = []
    for line in lines:
        name = line.split()[0]
        base = name.split('.')[0]
        if base in ('LDG', 'STG', 'LDS', 'STS', 'LDGSTS', 'LDL', 'STL'):
            bits = re.search(r'\.(?:U|S)?(8|16|64|128)\b', name)
            name = f'{base} {int(bits[1]) // 8 if bits else 4}'
        else:
            name = base
        names.append(name)
    inner = Counter()
    for i, line in enumerate(lines):
        target = re.search(r'BRA.*\((\.L_x_\d+)\)', line)
        if target and labels.get(target[1], i + 1) <= i:
            loop = Counter(names[labels[target[1]]:i + 1])
            if (loop['FFMA'], -loop.total()) > (inner['FFMA'], -inner.total()):
                inner = loop
    return Counter(names), inner


def inspect(nvrtc: Nvrtc, source: str, defines: str, arch: str,
            disassembler: Optional[str]) -> Compiled:
    """Compile one kernel and count."""
    cubin, log = nvrtc.compile(source, defines, arch)
    registers = int(re.search(r'Used (\d+) registers', log)[1])
    spilled = sum(map(int, re.findall(r'(\d+) bytes spill', log)))
    if disassembler is None:
        ptx, _ = nvrtc.compile(source, defines, arch.replace('sm', 'compute'))
        return Compiled(registers, spilled, count_ptx(ptx.decode(errors='ignore')), Counter())
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([disassembler, '-c', file.name], check=True, capture_output=True,
                              text=True).stdout
    return Compiled(registers, spilled, *count_sass(text))


def occupancy(registers: int, threads: int, shared: int) -> float:
    """Resident warps over the 64 that fit on a multiprocessor of the device."""
    warps = -(-threads // 32)
    by_registers = 65536 // (-(-registers // 8) * 8 * 32) // warps
    blocks = min(by_registers, H200[3] // (shared + 1024), 32, 64 // warps)
    return blocks * warps / 64


def problems(forms=FORMS, shapes=SHAPES):
    """Label, bytes moved per pass and arguments of Emulator.plan, for all shapes and tasks."""
    for name, (batch, channels, rows, cols, kernel, stride, shared, mixed) in shapes.items():
        out = (-(-rows // stride), -(-cols // stride))
        geometry = ((kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, (1, 1), mixed)
        for dtype, last in forms:
            order = torch.channels_last if last else torch.contiguous_format
            x, y = (torch.empty((batch, channels, *size), dtype=dtype, device='meta',
                                memory_format=order) for size in ((rows, cols), out))
            w = torch.empty((batch, channels // shared, kernel ** 2, *out), dtype=dtype,
                            device='meta')
            size = (x.numel() + y.numel() + w.numel()) * x.element_size()
            label = f'{name}, {str(dtype)[6:]}' + (' channels-last' if last else '')
            for task, operands in zip(TASKS, ((x, w, y), (y, w, x), (x, y, w))):
                yield (label, size, (task, *operands, (channels, channels // shared),
                                     (rows, cols, *out), geometry))


def measure(emulator: Emulator, nvrtc: Nvrtc, archs: List[str],
            disassembler: Optional[str]) -> Tuple[List[Dict], List[Dict]]:
    """Rows of the two tables: kernels, and shapes with the kernels chosen for them."""
    kernels, shapes = {}, []
    for label, size, problem in problems():
        (launch,) = emulator.plan(*problem)
        key = (launch.source, launch.defines)
        index = list(kernels).index(key) if key in kernels else len(kernels)
        kernels.setdefault(key, {arch: inspect(nvrtc, *key, arch, disassembler)
                                 for arch in archs})
        tiles = emulator.tiles(*problem)
        registers = kernels[key][archs[-1]].registers
        shapes.append({
            'shape': label, 'task': problem[0], 'kernel': index,
            'tile': tiles[0][0].split('  ')[1] if tiles else '', 'threads': launch.block,
            'blocks': launch.grid[0] * launch.grid[1] * launch.grid[2],
            'shared_bytes': launch.shared_bytes,
            'occupancy': round(occupancy(registers, launch.block, launch.shared_bytes), 2),
            'floor_us': round(size / BANDWIDTH, 1),
            'estimate_us': round(tiles[0][1], 1) if tiles else None})
    rows = []
    for (source, defines), compiled in kernels.items():
        for arch, code in compiled.items():
            loads = sum(int(name.split()[1]) * count for name, count in code.inner.items()
                        if name.startswith(('LDS', 'STS')))
            adds = code.inner['FFMA']
            rows.append({
                'kernel': list(kernels).index((source, defines)), 'arch': arch, 'source': source,
                'defines': defines, 'registers': code.registers, 'spilled_bytes': code.spilled,
                'accesses': {name: count for name, count in sorted(code.instructions.items())
                             if ' ' in name},
                'inner_loop': {'instructions': code.inner.total(), 'FFMA': adds},
                'shared_bytes_per_multiply_add': round(loads / adds, 2) if adds else None})
    return rows, shapes


def markdown(kernels: List[Dict], shapes: List[Dict], read: str) -> str:
    """Both tables."""
    lines = [f'Accesses are counted in {read}. Estimates are counted, not measured on a GPU.', '',
             '| shape | task | kernel | tile (rows, quads, groups) | threads | blocks | '
             'shared KB | occupancy | floor us | estimate us |', '|' + '---|' * 10]
    lines += [f"| {row['shape']} | {row['task']} | {row['kernel']} | {row['tile']} | "
              f"{row['threads']} | {row['blocks']} | {row['shared_bytes'] / 1024:.0f} | "
              f"{row['occupancy']:.0%} | {row['floor_us']} | {row['estimate_us']} |"
              for row in shapes]
    lines += ['', '| kernel | arch | registers | spilled | memory instructions (name bytes: '
              'number) | inner loop: multiply-adds of instructions | shared bytes per '
              'multiply-add | compiled with |', '|' + '---|' * 8]
    for row in kernels:
        accesses = ', '.join(f'{name}: {count}' for name, count in row['accesses'].items())
        inner = row['inner_loop']
        lines.append(f"| {row['kernel']} | {row['arch']} | {row['registers']} | "
                     f"{row['spilled_bytes']} | {accesses} | {inner['FFMA']} of "
                     f"{inner['instructions']} | {row['shared_bytes_per_multiply_add']} | "
                     f"{row['source']} {row['defines'].replace('-D', '')} |")
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--arch', nargs='+', default=['sm_80', 'sm_90'])
    parser.add_argument('--nvdisasm', default=find_disassembler(), help='path of the disassembler')
    parser.add_argument('--out', nargs='*', type=Path, default=[], help='.md and .json files')
    arguments = parser.parse_args()
    library = find_nvrtc()
    if library is None:
        parser.error('no NVRTC beside this torch: it comes with CUDA builds of torch')
    with tempfile.TemporaryDirectory() as folder:
        kernels, shapes = measure(Emulator(Path(folder)), Nvrtc(library), arguments.arch,
                                  arguments.nvdisasm)
    read = 'machine code' if arguments.nvdisasm else 'PTX (no disassembler was found)'
    text = markdown(kernels, shapes, read)
    for path in arguments.out:
        path.write_text(json.dumps({'kernels': kernels, 'shapes': shapes}, indent=1)
                        if path.suffix == '.json' else text)
    if not arguments.out:
        print(text)


if __name__ == '__main__':
    main()
