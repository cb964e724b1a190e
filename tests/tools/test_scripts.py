"""The shell scripts pass on their arguments as those of the mm libraries do."""
import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def run(tmp_path):
    """Run a script whose python and srun print their arguments, one per line."""
    echo = tmp_path / 'echo'
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    (tmp_path / 'srun').symlink_to(echo)

    def run(script, *args, **env):
        env = {**os.environ, 'PYTHON': str(echo),
               'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', **env}
        done = subprocess.run(['bash', str(TOOLS / script), *args], env=env,
                              capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.parametrize('script, args', [
    ('dist_train.sh', ('c.py', )), ('dist_test.sh', ('c.py', 'x.pth')),
    ('slurm_train.sh', ('part', 'job', 'c.py')), ('slurm_test.sh', ('part', 'job', 'c.py'))])
def test_usage_is_shown_where_arguments_are_missing(run, script, args):
    status, _, error = run(script, *args)
    assert status == 2 and 'usage:' in error


@pytest.mark.parametrize('count', ['0', 'two', '--resume'])
def test_a_wrong_number_of_processes_is_named(run, count):
    for status, _, error in (run('dist_train.sh', 'c.py', count),
                             run('slurm_test.sh', 'part', 'job', 'c.py', 'x.pth', GPUS=count)):
        assert status == 2
        assert f"error: GPUS must be a number from 1 on, got '{count}'" in error


def test_one_machine_takes_any_free_port(run):
    status, lines, _ = run('dist_train.sh', 'c.py', '8', '--cfg-options', 'a=[1, 2]')
    assert status == 0
    assert {'--nnodes=1', '--nproc-per-node=8', '--master-port=0'} <= set(lines)
    assert lines[-6:] == [str(TOOLS / 'train.py'), '--launcher', 'pytorch', 'c.py',
                          '--cfg-options', 'a=[1, 2]']


def test_several_machines(run):
    _, lines, _ = run('dist_test.sh', 'c.py', 'x.pth', '4', NNODES='2', NODE_RANK='1',
                      MASTER_ADDR='10.0.0.1')
    assert {'--nnodes=2', '--node-rank=1', '--master-addr=10.0.0.1', '--master-port=29500',
            '--nproc-per-node=4'} <= set(lines)
    assert lines[-5:] == [str(TOOLS / 'test.py'), '--launcher', 'pytorch', 'c.py', 'x.pth']
    _, lines, _ = run('dist_train.sh', 'c.py', '4', PORT='12345')
    assert '--master-port=12345' in lines


def test_slurm(run):
    _, lines, _ = run('slurm_train.sh', 'part', 'job', 'c.py', 'work', '--amp', GPUS='4',
                      SRUN_ARGS='--exclusive --time=1')
    assert lines[:2] == ['-p', 'part'] and {'--job-name=job', '--gres=gpu:4', '--ntasks=4',
                                            '--exclusive', '--time=1'} <= set(lines)
    assert lines[-6:] == [str(TOOLS / 'train.py'), '--launcher', 'slurm', 'c.py',
                          '--work-dir=work', '--amp']
    _, lines, _ = run('slurm_test.sh', 'part', 'job', 'c.py', 'x.pth', GPUS='16')
    assert {'--ntasks=16', '--ntasks-per-node=8'} <= set(lines)
    assert lines[-5:] == [str(TOOLS / 'test.py'), '--launcher', 'slurm', 'c.py', 'x.pth']
