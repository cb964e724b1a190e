"""Runs the tasks of the campaign within a time budget and writes their results.

Each task is a separate process with a time limit. After every task ``campaign.json`` (all
figures), ``campaign.md`` (tables) and ``campaign.log`` are written to ``--out``, plots at the end;
a later call with the same folder runs only what is not done yet.
"""
import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from gpu import report
from gpu.machine import prepare
from gpu.record import Record
from gpu.tasks import PARTS, TASKS, Task

ROOT = Path(__file__).resolve().parents[3]
_TAIL_LINES = 12


class Campaign:
    """State of a campaign in one folder.

    Args:
        options: Parsed options.
        tasks: All tasks, in order.
        prepare: Makes the environment of the tasks, see :func:`gpu.machine.prepare`.
    """

    def __init__(self, options: argparse.Namespace, tasks: Tuple[Task, ...] = TASKS,
                 prepare: Callable = prepare) -> None:
        self.options, self.tasks, self._prepare = options, tasks, prepare
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.stop = time.monotonic() + 60 * options.minutes
        self.state = {'setup': {}, 'tasks': {}}
        if self._file.is_file():
            self.state = json.loads(self._file.read_text())
        self.work = Path(options.work or tempfile.mkdtemp(prefix='mmcontext-campaign-'))
        self.work.mkdir(parents=True, exist_ok=True)
        options.work = str(self.work)

    @property
    def _file(self) -> Path:
        return self.out / 'campaign.json'

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.stop - time.monotonic()

    def run(self) -> int:
        """Run the selected tasks that are not done; returns the number of tasks with a failure."""
        environment, self.state['setup'] = self._prepare(self.options, self.work, self._log)
        for task in self.tasks:
            done = self.state['tasks'].get(task.name, {}).get('status') == 'done'
            wanted = (task.name in self.options.tasks if self.options.tasks
                      else task.part in self.options.parts)
            if not wanted or done and not self.options.again:
                continue
            self.state['tasks'][task.name] = entry = self._one(task, environment)
            print(f'{task.part} {task.name}: {entry["status"]}, {entry["seconds"]:.0f} s, '
                  f'{len(entry["failures"])} failures, {max(self.left, 0):.0f} s left', flush=True)
            self._save(report.write)
        self._save(report.plot)
        print(report.failures(self.state))
        return sum(bool(entry['failures']) for entry in self.state['tasks'].values())

    def _one(self, task: Task, environment: Dict[str, str]) -> dict:
        reason = self._refusal(task, environment)
        if reason:
            return dict(part=task.part, status='left out', reason=reason, seconds=0., tables={},
                        notes={}, failures=[])
        start = time.monotonic()
        path = self.work / f'{task.name}.json'
        path.unlink(missing_ok=True)
        earlier = self.state['tasks'].get(task.name, {})
        if task.resumes and earlier.get('tables'):
            path.write_text(json.dumps(dict(
                tables=earlier['tables'], notes=earlier['notes'], failures=[])))
        if self.options.dry_run:
            code, tail = self._here(task, path)
        else:
            code, tail = self._process(task, path, environment)
        content = json.loads(path.read_text()) if path.is_file() else Record().content
        status = {0: 'done', None: 'out of time'}.get(code, 'failed')
        if status == 'failed':
            content['failures'].append(dict(what=task.name, reason=f'exit status {code}'))
        entry = dict(part=task.part, status=status, gpu=self.state['setup'].get('gpu', ''),
                     seconds=round(time.monotonic() - start, 1), **content)
        return entry if status == 'done' and not task.tool else dict(entry, tail=tail)

    def _refusal(self, task: Task, environment: Dict[str, str]) -> str:
        if self.left < task.least:
            return f'{self.left:.0f} s left, worth starting with {task.least:.0f}'
        path = environment['PYTHONPATH'].split(os.pathsep)
        for package in task.needs:
            if not any(Path(folder, package).exists() for folder in path) \
                    and importlib.util.find_spec(package) is None:
                return f'the package {package} is not there'
        if task.tool and not self.options.dry_run and not shutil.which(task.tool[0]):
            return f'the program {task.tool[0]} is not there'
        if task.name == 'cifar10' and not self.options.data:
            return 'no data set was given (--data)'
        return ''

    def _arguments(self, task: Task, path: Path, seconds: float) -> argparse.Namespace:
        options = self.options
        return argparse.Namespace(
            device='cpu' if options.dry_run else 'cuda', dry_run=options.dry_run,
            work=str(self.work), tiles=str(self.out / 'tiles.txt'), data=options.data,
            prototype=options.prototype, backend='torch' if options.dry_run else 'cuda',
            seconds=seconds, path=str(path), function=task.function)

    def _here(self, task: Task, path: Path) -> Tuple[int, List[str]]:
        from gpu.task import run
        try:
            run(self._arguments(task, path, 5.))
        except Exception:
            return 1, traceback.format_exc().splitlines()[-_TAIL_LINES:]
        return 0, []

    def _process(self, task: Task, path: Path,
                 environment: Dict[str, str]) -> Tuple[Optional[int], List[str]]:
        """Exit status (None if it ran out of time) and the last lines of output."""
        limit = min(task.limit, max(self.left, 1))
        arguments = json.dumps(vars(self._arguments(task, path, limit)))
        command = [*task.tool, sys.executable, '-m', 'gpu.task', arguments]
        tiles = self.out / 'tiles.txt'
        if tiles.is_file() and task.name != 'tiles':
            environment = dict(environment, MMCONTEXT_CUDA_TILES=str(tiles))
        output = self.work / f'{task.name}.log'
        with open(output, 'w') as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT,
                                       env=environment, start_new_session=True)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
        text = output.read_text(errors='replace')
        self._log(f'== {task.name}: {"out of time" if code is None else code}\n{text}')
        return code, text.splitlines()[-_TAIL_LINES:]

    def _log(self, text: str) -> None:
        with open(self.out / 'campaign.log', 'a') as file:
            file.write(text.rstrip('\n') + '\n')

    def _save(self, make: Callable[[dict, Path], None]) -> None:
        temporary = self.out / 'campaign.json.new'
        temporary.write_text(json.dumps(self.state, indent=1))
        temporary.replace(self._file)
        try:
            make(self.state, self.out)
        except Exception as error:  # the figures are safe; a table must not end the campaign
            print(f'report: {type(error).__name__}: {error}', flush=True)


def parse(arguments: Optional[List[str]] = None) -> argparse.Namespace:
    """Options of the campaign."""
    parser = argparse.ArgumentParser(
        prog='gpu_campaign.sh', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=9.5, help='for all of it; default 9.5')
    parser.add_argument('--out', default='work_dirs/gpu_campaign')
    parser.add_argument('--parts', default=PARTS, help=f'letters of {PARTS}; default all')
    parser.add_argument('--tasks', nargs='+', choices=[task.name for task in TASKS],
                        metavar='TASK', help='these alone, whatever their part')
    parser.add_argument('--again', action='store_true', help='run finished tasks again')
    parser.add_argument('--dry-run', action='store_true', help='tiny shapes on the CPU')
    parser.add_argument('--wheels', help='folder of wheels of the packages that are missing')
    parser.add_argument('--prototype', help='compiled library to time beside the kernels')
    parser.add_argument('--data', help='CIFAR-10 as an archive or npz of cifar_npz.py (part h)')
    parser.add_argument('--work', help='folder for caches and training; default a temporary one')
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f'--parts takes letters of {PARTS}, got {options.parts!r}')
    if options.minutes <= 0:
        parser.error(f'--minutes must be positive, got {options.minutes}')
    for name in ('wheels', 'prototype', 'data', 'work', 'out'):
        value = getattr(options, name)
        if value:
            setattr(options, name, os.path.abspath(value))
    return options


if __name__ == '__main__':
    Campaign(parse()).run()
