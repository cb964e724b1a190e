"""The GPU campaign without a GPU: all parts with tiny shapes, and the driver with faulty tasks."""
import argparse
import json
import os
import subprocess
import sys

import pytest
from common import ROOT

BENCHMARKS = ROOT / 'tools/benchmarks'
FAKES = '''
import time

def fine(record, options):
    record.row('sizes', number=len(record.content['tables'].get('sizes', [])))

def hangs(record, options):
    fine(record, options)
    time.sleep(600)

def dies(record, options):
    with record.attempt('a row'):
        raise ValueError('known trouble')
    raise SystemExit('the last words')
'''


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Runs fake tasks, given as (name, function, resumes), in a folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu.campaign import Campaign, parse
    from gpu.tasks import Task
    (tmp_path / 'fakes.py').write_text(FAKES)
    path = os.pathsep.join([str(tmp_path), str(BENCHMARKS)])

    def run(*tasks, minutes=1., options=()):
        parsed = parse(['--out', str(tmp_path / 'out'), '--work', str(tmp_path),
                        '--minutes', str(minutes), *options])
        tasks = tuple(Task(name, 'a', f'fakes:{function}', 3, 0.5, (), resumes=resumes)
                      for name, function, resumes in tasks)
        Campaign(parsed, tasks, lambda *_: (dict(os.environ, PYTHONPATH=path), {})).run()
        return json.loads((tmp_path / 'out/campaign.json').read_text())['tasks']

    return run


def test_rows_survive_the_end_of_time_and_failures_are_listed(campaign, tmp_path, capsys):
    found = campaign(('slow', 'hangs', False), ('bad', 'dies', False), ('good', 'fine', False))
    assert [found[name]['status'] for name in ('slow', 'bad', 'good')] == \
        ['out of time', 'failed', 'done']
    assert found['slow']['tables'] == {'sizes': [{'number': 0}]}
    said = capsys.readouterr().out
    assert 'slow was ended after' in said and 'a row: ValueError: known trouble' in said
    assert 'the last words' in said
    assert 'the last words' in (tmp_path / 'out/campaign.md').read_text()


def test_a_second_call_goes_on_where_the_first_ended(campaign):
    campaign(('slow', 'hangs', True), ('good', 'fine', True))
    found = campaign(('slow', 'fine', True), ('good', 'hangs', True))
    assert found['good']['status'] == found['slow']['status'] == 'done'
    assert found['slow']['tables'] == {'sizes': [{'number': 0}, {'number': 1}]}
    found = campaign(('good', 'fine', False), options=['--again'])
    assert found['good']['tables'] == {'sizes': [{'number': 0}]}


def test_nothing_starts_without_time(campaign):
    found = campaign(('good', 'fine', False), minutes=0.001)
    assert found['good']['status'] == 'left out' and 's left' in found['good']['reason']


@pytest.mark.parametrize('arguments, reason', [
    (['--parts', 'az'], "takes letters of abcdefgh, got 'az'"),
    (['--minutes', '0'], 'must be positive, got 0.0')])
def test_wrong_options_are_named(arguments, reason, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu.campaign import parse
    with pytest.raises(SystemExit):
        parse(arguments)
    assert reason in capsys.readouterr().err


def test_prototype_keeps_the_tiles_that_are_right(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch
    from bench_ops import Shape, operands
    from gpu import prototype
    from gpu.operators import time_prototype
    from gpu.record import Record
    from gpu.timing import Device

    class Library:
        """Does not support the gradient of w; only the gradient of x, all zeros, is correct."""

        def __init__(self, path):
            pass

        def agg(self, half, direction, *rest):
            return -1 if direction == 2 else 0

    monkeypatch.setattr(prototype.ctypes, 'CDLL', Library)
    shape = Shape('tiny', 1, 16, 1, 8, 8, 7)
    values = operands(shape, 'cpu', torch.float32, 'nchw')
    steps = prototype.Prototype('').directions(*values, shape)
    assert steps['forward'] and steps['grad_x'] and not steps['grad_w']
    record = Record()
    time_prototype(record, Device('cpu'), argparse.Namespace(prototype='', dry_run=True))
    assert not any({'forward', 'grad_x'} & set(row)
                   for row in record.content['tables']['operators'])


def test_the_parts_about_kernels_run_on_tiny_shapes(tmp_path):
    pytest.importorskip('mmpretrain')
    done = subprocess.run(
        ['bash', str(BENCHMARKS / 'gpu_campaign.sh'), '--dry-run', '--parts', 'abc', '--out',
         str(tmp_path), '--work', str(tmp_path / 'work'), '--minutes', '30'],
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tasks = json.loads((tmp_path / 'campaign.json').read_text())['tasks']
    assert {name: task['status'] for name, task in tasks.items()} == dict.fromkeys(tasks, 'done')
    assert [task['failures'] for task in tasks.values() if task['failures']] == []
    report = (tmp_path / 'campaign.md').read_text()
    for title in ('Aggregation', 'Correctness', 'Host time of a call', 'Fused', 'First and second',
                  'Sizes'):
        assert f'## {title}' in report
