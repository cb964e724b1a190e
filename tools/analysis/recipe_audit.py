"""Tables of the authors' recipes beside ours, from configs/*/recipe.yml.

    python tools/analysis/recipe_audit.py            # how many fields agree
    python tools/analysis/recipe_audit.py --write    # and write configs/*/RECIPE.md

A row has the field's name, the authors' value and the key of our value in the resolved config;
keys are dotted, and [Type] selects an entry of a list by its type, [2] by its index. `here` is our
value if its form differs, `was` our value before it was corrected, `why` the reason for a
deliberate deviation. With `each`, values are lists with one entry per config of the table; `was`
may then be a list too, with null where nothing changed.
"""
import argparse
import math
import re
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import yaml
from mmengine.config import Config, utils

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# With at least this many configs in a table, each has its own row.
MANY = 9
STATUS = ('equal', 'corrected', 'deviates')


class Row(NamedTuple):
    """One field of one config."""
    field: str
    config: str
    key: str
    expected: Any
    status: str


def look_up(cfg: Any, key: str) -> Any:
    """The value of a key in a config; None if there is none."""
    for part in re.findall(r'\[[^]]+\]|[^.[]+', key):
        if part.startswith('['):
            name = part[1:-1]
            try:
                cfg = cfg[int(name)] if name.lstrip('-').isdigit() else next(
                    entry for entry in cfg if entry['type'].split('.')[-1] == name)
            except (StopIteration, IndexError, TypeError, KeyError):
                return None
        elif hasattr(cfg, 'get'):
            cfg = cfg.get(part)
        else:
            return None
    return cfg


def same(actual: Any, expected: Any) -> bool:
    """Equality of config values; lists equal tuples, and numbers are compared as floats."""
    if isinstance(expected, (list, tuple)):
        return (isinstance(actual, (list, tuple)) and len(actual) == len(expected)
                and all(map(same, actual, expected)))
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        return math.isclose(actual, expected, rel_tol=1e-9)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return actual.keys() == expected.keys() and all(
            same(actual[k], v) for k, v in expected.items())
    return actual == expected


def load(path: Path) -> dict:
    """A recipe.yml."""
    return yaml.safe_load(path.read_text())


def status_of(row: dict, number: int = 0) -> str:
    """The status, one of STATUS, of one of the row's configs."""
    was = row.get('was')
    if row.get('each') and isinstance(was, list):
        was = was[number]
    return 'deviates' if 'why' in row else 'equal' if was is None else 'corrected'


def rows(audit: dict) -> Iterator[Row]:
    """Every field of every config of a family."""
    for table in audit['tables']:
        for row in table['rows']:
            value = row.get('here', row['authors'])
            for number, config in enumerate(table['configs']):
                expected = value[number] if row.get('each') else value
                yield Row(row['field'], config, row['key'], expected,
                          status_of(row, number))


def cell(value: Any) -> str:
    """A value in a Markdown table."""
    if isinstance(value, float):
        return f'{value:.10g}'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(cell, value))
    if isinstance(value, dict):
        return ', '.join(f'{k} {cell(v)}' for k, v in value.items())
    return {None: 'none', True: 'yes', False: 'no'}.get(value, value) if not isinstance(
        value, (int, str)) or isinstance(value, bool) else str(value)


def by_config(table: dict) -> list:
    """Lines of a table with one row per config, showing the fields in which they differ."""
    varied = [row for row in table['rows'] if row.get('each')]
    lines = ['Authors / here, or one value where ours is alike or the default:', '',
             '| Config | ' + ' | '.join(row['field'] for row in varied) + ' |',
             '|:--|' + ':-:|' * len(varied)]
    for number, config in enumerate(table['configs']):
        cells = []
        for row in varied:
            theirs, ours = row['authors'][number], row.get('here', row['authors'])[number]
            alike = ours is None or same(ours, theirs) or isinstance(theirs, str)
            cells.append(cell(theirs) if alike else f'{cell(theirs)} / {cell(ours)}')
        lines.append(f'| `{config}` | ' + ' | '.join(cells) + ' |')
    return lines


def markdown(audit: dict) -> str:
    """The page of a family."""
    lines = [f'# {audit["family"]}: the authors\' recipe and ours', '',
             'Written by `tools/analysis/recipe_audit.py --write` from `recipe.yml`; a test holds '
             'the column "here"', 'to the resolved configs. Authors\' values were read in '
             f'{audit["repository"]}.', '']
    for note in audit.get('notes', []):
        lines += [note.strip(), '']
    for table in audit['tables']:
        lines += [f'## {table["title"]}', '']
        many = len(table['configs']) > MANY
        if not many:
            lines += [', '.join(f'`{c}`' for c in table['configs']), '']
        lines += ['| Field | Authors | Here | Read in | |', '|:--|:--|:--|:--|:--|']
        for row in table['rows']:
            value = row.get('here', row['authors'])
            note = ''
            if 'why' in row:
                note = f'on purpose: {row["why"]}'
            elif isinstance(row.get('was'), list):
                changed = [f'{cell(was)} in `{config}`' for config, was
                           in zip(table['configs'], row['was']) if was is not None]
                note = f'corrected: was {", ".join(changed)}'
            elif 'was' in row:
                note = f'corrected: was {cell(row["was"])}'
            below = many and row.get('each')
            values = ['below', 'below'] if below else [cell(row['authors']), cell(value)]
            lines.append(f'| {" | ".join([row["field"], *values])} '
                         f'| {row.get("file", table.get("file"))} | {note} |')
        lines.append('')
        if many:
            lines += by_config(table) + ['']
    return '\n'.join(lines).rstrip() + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help='write configs/*/RECIPE.md')
    args = parser.parse_args()
    # mmengine rereads all metafiles of a library for every file that a config takes from it.
    utils.load = lru_cache(maxsize=None)(utils.load)
    wrong = 0
    print(f'{"family":<12}{"fields":>8}' + ''.join(f'{s:>11}' for s in STATUS))
    total: Counter = Counter()
    for path in sorted(CONFIGS.glob('*/recipe.yml')):
        audit = load(path)
        cfgs = {name: Config.fromfile(path.parent / name)
                for table in audit['tables'] for name in table['configs']}
        counts: Counter = Counter()
        for row in rows(audit):
            counts[row.status] += 1
            actual = look_up(cfgs[row.config], row.key)
            if not same(actual, row.expected):
                wrong += 1
                print(f'{path.parent.name}/{row.config}: {row.field} is {actual!r}, not '
                      f'{row.expected!r}', file=sys.stderr)
        if args.write:
            (path.parent / 'RECIPE.md').write_text(markdown(audit))
        total += counts
        print(f'{path.parent.name:<12}{sum(counts.values()):>8}'
              + ''.join(f'{counts[s]:>11}' for s in STATUS))
    print(f'{"all":<12}{sum(total.values()):>8}' + ''.join(f'{total[s]:>11}' for s in STATUS))
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
