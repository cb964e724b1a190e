"""What the campaign needs on a machine: packages, the C++ library, folders for caches."""
import argparse
import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

ROOT = Path(__file__).resolve().parents[3]
_BUILD_SECONDS = 90

# Prints the machine and, if the C++ library cannot be used, why.
_PROBE = '''
import json, platform, torch
from mmcontext.ops.native_library import UNAVAILABLE
facts = dict(torch=torch.__version__, cuda=torch.version.cuda, python=platform.python_version(),
             library=UNAVAILABLE or 'loaded')
if torch.cuda.is_available():
    properties = torch.cuda.get_device_properties(0)
    facts.update(gpu=properties.name, multiprocessors=properties.multi_processor_count,
                 memory_gib=round(properties.total_memory / 2 ** 30, 1),
                 capability='%d.%d' % (properties.major, properties.minor))
print(json.dumps(facts))
'''


def _start(command: list, environment: Dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)


def _finish(process: subprocess.Popen, what: str, log: Callable[[str], None],
            seconds: float) -> Tuple[bool, str]:
    """Whether the process succeeded in time, and its last line."""
    try:
        output = process.communicate(timeout=seconds)[0]
        reason = f'exit status {process.returncode}'
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and whatever keeps its output open
        output, reason = process.communicate()[0], f'not done after {seconds:.0f} s'
    log(f'== {what}: {reason}\n{output}')
    lines = output.strip().splitlines() or ['']
    return process.returncode == 0, lines[-1] if process.returncode == 0 else reason


def _probe(environment: Dict[str, str], log: Callable[[str], None]) -> Optional[dict]:
    fine, line = _finish(_start([sys.executable, '-c', _PROBE], environment), 'probe', log, 60)
    return json.loads(line) if fine else None


def prepare(options: argparse.Namespace, work: Path,
            log: Callable[[str], None]) -> Tuple[Dict[str, str], dict]:
    """Install the packages in ``--wheels`` and build the C++ library if there is none.

    Args:
        options: Options of the campaign.
        work: Folder of this campaign on this machine.
        log: Called with the output of the programs.

    Returns:
        Environment of the tasks, and what was found and how long that took.
    """
    environment = dict(
        os.environ, PYTHONUNBUFFERED='1',
        MMCONTEXT_KERNEL_CACHE=str(work / 'kernels'), TRITON_CACHE_DIR=str(work / 'triton'),
        TORCHINDUCTOR_CACHE_DIR=str(work / 'inductor'))
    path = [str(ROOT), str(ROOT / 'tools/benchmarks'), environment.get('PYTHONPATH', '')]
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, path))
    if options.dry_run:
        return environment, dict(gpu='none: a dry run, whose figures mean nothing')
    start, facts, install = time.monotonic(), {}, None
    if options.wheels:
        wheels = sorted(glob.glob(os.path.join(options.wheels, '*.whl')))
        site = work / 'site'
        install = _start([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index',
                          '--no-deps', '--no-compile', '--target', str(site), *wheels],
                         environment)
        path[:0] = [str(ROOT / 'tools/benchmarks/gpu/site'), str(site)]
    machine = _probe(environment, log)
    if machine is None or machine['library'] != 'loaded':
        build = time.monotonic()
        fine, reason = _finish(
            _start([sys.executable, 'setup.py', 'build_ext', '--inplace'],
                   dict(environment, MAX_JOBS=str(os.cpu_count()))), 'build', log, _BUILD_SECONDS)
        facts['build'] = 'done' if fine else reason
        facts['build_seconds'] = round(time.monotonic() - build, 1)
        machine = _probe(environment, log) or machine
    if install:
        fine, reason = _finish(install, 'pip', log, 120)
        facts['wheels'] = f'{len(wheels)} installed' if fine else reason
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, path))
    facts['setup_seconds'] = round(time.monotonic() - start, 1)
    return environment, {**(machine or dict(gpu='the probe failed, see campaign.log')), **facts}
