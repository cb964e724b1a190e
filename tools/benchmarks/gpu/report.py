"""Markdown tables and plots of a campaign: ``python -m gpu.report DIR`` recreates them."""
import json
import sys
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional

_COLUMNS = ('cuda', 'torch', 'triton', 'one thread per output', 'prototype',
            'shift-and-add, compiled')


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    heads = list(heads)
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join('| ' + ' | '.join('-' if cell is None else str(cell) for cell in row) + ' |'
                     for row in lines)


def _rows(state: dict, table: str) -> List[dict]:
    """Rows of a table in all tasks."""
    return [row for task in state['tasks'].values()
            for row in task.get('tables', {}).get(table, [])]


def _figure(value: Optional[float], digits: int = 0) -> Optional[str]:
    return None if value is None else f'{value:.{digits}f}'


def _operators(state: dict) -> str:
    """GPU microseconds of each direction, one line per shape, dtype and layout."""
    cells, floors, names = {}, {}, []
    for row in _rows(state, 'operators'):
        key = (row['shape'], row['dtype'], row['layout'])
        times = [_figure(row.get(direction)) or '-'
                 for direction in ('forward', 'grad_x', 'grad_w')]
        cells.setdefault(key, {})[row['implementation']] = ' / '.join(times)
        if 'floor_us' in row:
            floors[key] = row['floor_us']
        if row['implementation'] not in names:
            names.append(row['implementation'])
    for row in _rows(state, 'tiles'):
        key = (row['shape'], row['dtype'], row['layout'])
        line = cells.setdefault(key, {}).setdefault('cuda, tuned tiles', {})
        line[row['direction']] = row.get('tuned_us', row['default_us'])
    tuned = 'cuda, tuned tiles'
    for line in cells.values():
        if tuned in line:
            line[tuned] = ' / '.join(_figure(line[tuned].get(direction)) or '-'
                                     for direction in ('forward', 'grad_x', 'grad_w'))
    names = [name for name in _COLUMNS if name in names]
    names[1:1] = [tuned] if any(tuned in line for line in cells.values()) else []
    return _table(('shape', 'dtype', 'layout', 'floor', *names),
                  ((*key, _figure(floors.get(key)), *(line.get(name) for name in names))
                   for key, line in cells.items()))


def _correctness(state: dict) -> str:
    return _table(('backend', 'dtype', 'layout', 'cases', 'worst error', 'tolerance'),
                  ((row['backend'], row['dtype'], row['layout'], row['cases'],
                    f'{row["worst"]:.1e}', f'{row["tolerance"]:.1e}')
                   for row in _rows(state, 'correctness')))


def _host(state: dict) -> str:
    rows = _rows(state, 'host')
    base = next((row for row in rows if row['entry'] == 'torch conv2d'), rows[0])
    return _table(('entry', 'forward us', 'over conv2d', 'forward + backward us', 'over conv2d'),
                  ((row['entry'], *(cell for mode in ('forward_us', 'both_us') for cell in (
                      _figure(row[mode], 1), _figure(row[mode] / base[mode], 2))))
                   for row in rows))


def _networks(state: dict) -> str:
    """One line per network and setting; ratios to ResNet-50 in the same setting."""
    rows = _rows(state, 'networks')
    setting = ('mode', 'dtype', 'layout', 'compiled')
    base = {tuple(row[key] for key in setting): row for row in rows
            if row['network'] == 'ResNet-50'}
    lines = []
    for row in rows:
        of = base.get(tuple(row[key] for key in setting), {})

        def over(name: str) -> Optional[str]:
            return (_figure(row[name] / of[name], 2) if row.get(name) and of.get(name) else None)

        lines.append((row['network'], row['mode'], row['dtype'], row['layout'],
                      'compiled' if row['compiled'] else 'as it is',
                      _figure(row['eager_per_s']), over('eager_per_s'),
                      _figure(row.get('graph_per_s')), over('graph_per_s'), row['host_ms'],
                      _figure(row['peak_mib']), row['first_step_s']))
    return _table(('network', 'mode', 'dtype', 'layout', 'form', 'images/s', '/ ResNet-50',
                   'images/s, graph', '/ ResNet-50', 'host ms', 'peak MiB', 'first step s'),
                  lines)


def _grouped(state: dict) -> str:
    cells, names = {}, []
    for row in _rows(state, 'grouped'):
        key = (', '.join(map(str, row['geometry'])), row['dtype'])
        cells.setdefault(key, {})[row['way']] = ' / '.join(
            f'{row[name]:.0f}' for name in ('forward', 'grad_x', 'grad_weight'))
        if row['way'] not in names:
            names.append(row['way'])
    return _table(('channels, outputs, K, groups, stride, size', 'dtype', *names),
                  ((*key, *(line.get(name) for name in names)) for key, line in cells.items()))


def _fused(state: dict) -> str:
    return _table(('shape', 'dtype', 'layout', 'plain us', 'fused us', 'plain MiB', 'fused MiB'),
                  ((row['shape'], row['dtype'], row['layout'],
                    *(f'{row[form]["forward"]:.0f} / {row[form]["both"]:.0f}'
                      for form in ('plain', 'fused')),
                    *(_figure(row[form]['peak_mib']) for form in ('plain', 'fused')))
                   for row in _rows(state, 'fused')))


def _plain(table: str) -> Callable[[dict], str]:
    """A table as recorded."""
    def make(state: dict) -> str:
        rows = _rows(state, table)
        heads = list(dict.fromkeys(head for row in rows for head in row))
        return _table(heads, ([row.get(head) for head in heads] for row in rows))
    return make


def _profiles(state: dict) -> str:
    rows = _rows(state, 'profiles')
    kinds = list(dict.fromkeys(kind for row in rows for kind in row['kinds']))
    return _table(('network', 'GPU ms', 'launches', *kinds),
                  ((row['network'], row['gpu_ms'], row['launches'],
                    *(f'{row["kinds"][kind][0]:.2f} ({row["kinds"][kind][1]:.0f})'
                      if kind in row['kinds'] else None for kind in kinds)) for row in rows))


def _longest(state: dict) -> str:
    return _table(('network', 'kernel', 'ms', 'launches'),
                  ((row['network'], name.replace('|', ' '), *line)
                   for row in _rows(state, 'profiles') for name, line in row['longest'].items()))


# Table, title and how it is made.
_SECTIONS = (
    ('operators', 'Aggregation: GPU us, forward / gradient of x / gradient of w', _operators),
    ('correctness', 'Correctness: largest error over the largest value', _correctness),
    ('agreement', 'A training step: relative distances from float64',
     _plain('agreement')),
    ('norms', 'Batch norm, residual and activation in training: GPU us forward / backward',
     _plain('norms')),
    ('gates', 'Gates, pools and convolutions of two maps, bf16: GPU us forward / backward',
     _plain('gates')),
    ('host', 'Host time of a call', _host),
    ('host_steps', 'Host time of a training step of narrow networks, batch 8',
     _plain('host_steps')),
    ('fused', 'Fused involution: GPU us forward / forward + backward', _fused),
    ('first_step', 'First and second training step, seconds', _plain('first_step')),
    ('sizes', 'Sizes not seen before', _plain('sizes')),
    ('networks', 'Networks', _networks),
    ('profiles', 'A training step by kind of kernel: ms (launches)', _profiles),
    ('profiles', 'The longest kernels of a training step', _longest),
    ('graphs', 'Training with CudaGraphHook, contiguous images, bf16 AMP, batch 64',
     _plain('graphs')),
    ('grouped', 'Grouped convolutions: GPU us forward / gradient of x / of the weight, batch 64',
     _grouped),
    ('pointwise', 'Convolutions of kernel 1: GPU and host us, bf16, channels-last, batch 64 (in, '
     'out, size)', _plain('pointwise')),
    ('continuous', 'Depth-wise convolutions of CKResNet-50: GPU us, bf16, batch 64 (channels, K, '
     'stride, size)', _plain('continuous')),
    ('detection', 'Detectors and segmentors, batch 2, fp16 AMP, milliseconds a step',
     _plain('detection')),
    ('digits', 'Training and test scripts', _plain('digits')),
    ('cifar10', 'CIFAR-10', _plain('cifar10')),
)


def failures(state: dict) -> str:
    """Everything that failed or was not run, one line each, with the last lines of its output."""
    lines = []
    for name, task in state['tasks'].items():
        if task['status'] == 'left out':
            lines.append(f'- {name} left out: {task["reason"]}')
        elif task['status'] == 'out of time':
            lines.append(
                f'- {name} was ended after {task["seconds"]} s; its rows until then count')
        lines += [f'- {name}: {failure["what"]}: {failure["reason"]}'
                  for failure in task['failures']]
        if task['status'] == 'failed':
            lines += [f'      {line}' for line in task.get('tail', [])]
    return 'Failed or not run:\n' + '\n'.join(lines or ['- nothing'])


def markdown(state: dict) -> str:
    """The whole report."""
    setup = ', '.join(f'{key} {value}' for key, value in state['setup'].items())
    notes = [f'- {name}: {", ".join(f"{key} {value}" for key, value in task["notes"].items())}'
             for name, task in state['tasks'].items() if task.get('notes')]
    machines = {task['gpu'] for task in state['tasks'].values() if task.get('gpu')}
    if len(machines) > 1:
        setup += f'. The rows come from several GPUs: {", ".join(sorted(machines))}'
    parts = ['# GPU campaign', setup, failures(state)]
    parts += [f'## {title}\n\n{make(state)}' for table, title, make in _SECTIONS
              if _rows(state, table)]
    return '\n\n'.join([*parts, '## Notes\n\n' + '\n'.join(notes)]) + '\n'


def write(state: dict, out: Path) -> None:
    """``campaign.md``."""
    (out / 'campaign.md').write_text(markdown(state))


def plot(state: dict, out: Path) -> None:
    """``operators.png`` and ``networks.png``, if matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    for name, draw in (('operators', _draw_operators), ('networks', _draw_networks)):
        if _rows(state, name):
            figure = draw(state, plt)
            figure.tight_layout()
            figure.savefig(out / f'{name}.png', dpi=110)
            plt.close(figure)


def _draw_operators(state: dict, plt) -> object:
    """Fraction of the memory bandwidth, forward and all three directions together."""
    rows = [row for row in _rows(state, 'operators') if 'floor_us' in row]
    keys = list(dict.fromkeys((row['shape'], row['dtype'], row['layout']) for row in rows))
    figure, axes = plt.subplots(2, 1, figsize=(12, 8), sharex=True)
    for axis, directions in zip(axes, (('forward', ), ('forward', 'grad_x', 'grad_w'))):
        for name in dict.fromkeys(row['implementation'] for row in rows):
            shares = {(row['shape'], row['dtype'], row['layout']):
                      100 * len(directions) * row['floor_us'] / sum(map(row.get, directions))
                      for row in rows if row['implementation'] == name}
            axis.plot([keys.index(key) for key in shares], list(shares.values()), 'o', label=name)
        axis.set(ylabel='% of the copy bandwidth', title=', '.join(directions))
        axis.grid(axis='y')
    axes[0].legend()
    axes[1].set_xticks(range(len(keys)), [', '.join(key) for key in keys], rotation=90, fontsize=7)
    return figure


def _draw_networks(state: dict, plt) -> object:
    """Images per second over ResNet-50's in training, eagerly and as a graph."""
    rows: Dict[str, dict] = {
        row['network']: row for row in _rows(state, 'networks')
        if row['mode'] == 'train' and (row['dtype'], row['layout'], row['compiled']) ==
        ('bfloat16', 'nhwc', False)}
    base = rows.get('ResNet-50', {})
    figure, axis = plt.subplots(figsize=(9, 5))
    for shift, key in ((-0.2, 'eager_per_s'), (0.2, 'graph_per_s')):
        values = [row.get(key, 0) / base.get(key, 1) for row in rows.values()]
        axis.bar([index + shift for index in range(len(rows))], values, 0.4,
                 label=key.split('_')[0])
    axis.set_xticks(range(len(rows)), list(rows), rotation=45, ha='right')
    axis.set(ylabel='images per second' + (' / ResNet-50' if base else ''))
    axis.legend()
    return figure


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    found = json.loads((folder / 'campaign.json').read_text())
    write(found, folder)
    plot(found, folder)
