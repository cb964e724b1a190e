"""Launches and host time of training steps on the code paths for a GPU, without a GPU.

    python tools/benchmarks/bench_launches.py [--networks CedNet-50 ...] [--rounds 20] [--out FILE]

torch, built for CUDA 13 on Linux (tried with 2.11), runs on stubs of the CUDA runtime and driver,
cuDNN and cuBLAS (``stub_gpu/stubs.c``, compiled with gcc and preloaded), that count instead of
launching: every Python call, operator, cast and autograd node is there as on an H200, only the
kernels are not.
Training steps are in bf16 AMP, channels-last, batch 8; time is processor time of all threads, with
nothing for a launch itself (2 to 5 us on a GPU machine). Networks that read a value back, as
CKResNet does, cannot run: all results are zero.
"""
import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List

import torch

STUBS = Path(__file__).parent / 'stub_gpu/stubs.c'
COUNTERS = ('torch', 'own', 'cudnn', 'cublas')
# CKResNet reads the size of its kernels back.
NETWORKS = ('ResNet-50', 'CoResNet-50', 'RedNet-50', 'CedNet-50', 'SE-CoTNetD-50', 'CoTNet-50',
            'CoTNeXt-50', 'PyConvResNet-50', 'PyConvHGResNet-50')
_MARK = 'MMCONTEXT_STUB_GPU'


def refusal() -> str:
    """Why the stubs cannot take the place of a GPU here; empty if they can."""
    if not sys.platform.startswith('linux') or not (torch.version.cuda or '').startswith('13.'):
        return f'this needs torch for CUDA 13 on Linux, got CUDA {torch.version.cuda}'
    if not (shutil.which('gcc') and shutil.which('nm')):
        return 'this needs gcc and nm'
    if torch.cuda.is_available():
        return 'there is a GPU: use bench_host.py --device cuda'
    return ''


def _undefined() -> List[str]:
    """The functions that torch's libraries expect of the CUDA libraries."""
    names = set()
    for library in sorted(Path(torch.__file__).parent.glob('lib/lib*cuda*.so')):
        listed = subprocess.run(['nm', '-D', '--undefined-only', library], check=True,
                                capture_output=True, text=True).stdout
        names.update(line.split()[-1].split('@')[0] for line in listed.splitlines())
    return sorted(name for name in names
                  if name.startswith(('cuda', '__cuda', 'cublas', 'cudnn')))


def build(folder: Path) -> Path:
    """Compile the stubs, under the name of the driver; returns the library.

    Args:
        folder: Where to.
    """
    packages = Path(torch.__file__).parents[1]
    headers = [path.parent for pattern in ('nvidia/cu13/include/driver_types.h',
                                           'triton/backends/nvidia/include/cuda.h')
               for path in packages.glob(pattern)]
    options = ['-w', '-fPIC', f'-DCUDNN={torch.backends.cudnn.version()}',
               *(f'-I{header}' for header in headers)]
    own = folder / 'stubs.o'
    subprocess.run(['gcc', '-O1', '-c', *options, STUBS, '-o', own], check=True)
    listed = subprocess.run(['nm', '--defined-only', own], check=True, capture_output=True,
                            text=True).stdout
    defined = {line.split()[-1] for line in listed.splitlines()}
    rest = folder / 'rest.c'
    rest.write_text(''.join(f'int {name}(void) {{ return 0; }}\n' for name in _undefined()
                            if name not in defined))
    library = folder / 'libcuda.so.1'
    subprocess.run(['gcc', '-shared', *options, f'-Wl,-soname,{library.name}', own, rest, '-o',
                    library], check=True)
    return library


def _counts() -> List[int]:
    library = ctypes.CDLL('libcuda.so.1')
    return [ctypes.c_long.in_dll(library, f'stub_{name}').value for name in COUNTERS]


def _step(name: str) -> Callable[[], object]:
    from gpu.networks import build as build_network
    from gpu.networks import training_step
    return training_step(build_network(name), 'cuda', 8, 224, 'bfloat16', 'nhwc')


def measure(names: List[str], rounds: int) -> Dict[str, dict]:
    """Launches of a step, and the least milliseconds of the rounds, in which all take turns."""
    from mmengine.registry import init_default_scope

    from mmcontext.ops import gpu_kernels
    init_default_scope('mmpretrain')
    gpu_kernels.compile_kernel = lambda *_: b'never executed'
    torch.set_num_threads(1)
    steps, rows = {name: _step(name) for name in names}, {}
    for name, step in steps.items():
        step()
        step()
        before = _counts()
        step()
        launches = dict(zip(COUNTERS, (b - a for a, b in zip(before, _counts()))))
        rows[name] = dict(launches=sum(launches.values()), **launches, ms=float('inf'))
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            rows[name]['ms'] = min(rows[name]['ms'], 1e3 * (time.process_time() - start))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS),
                        metavar='NAME', help=f'of {", ".join(NETWORKS)}')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--out', help='JSON file')
    args = parser.parse_args()
    if _MARK not in os.environ:
        reason = refusal()
        if reason:
            parser.error(reason)
        with tempfile.TemporaryDirectory() as folder:
            environment = dict(os.environ, LD_PRELOAD=str(build(Path(folder))), **{_MARK: '1'})
            return subprocess.run([sys.executable, *sys.argv], env=environment).returncode
    rows = measure(args.networks, args.rounds)
    print(f'{"training step, batch 8":<22}{"ms":>8}{"launches":>10}'
          + ''.join(f'{name:>8}' for name in COUNTERS))
    for name, row in rows.items():
        print(f'{name:<22}{row["ms"]:>8.2f}{row["launches"]:>10}'
              + ''.join(f'{row[counter]:>8}' for counter in COUNTERS))
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
