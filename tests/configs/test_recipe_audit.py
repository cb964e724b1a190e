"""The tables of the authors' recipes agree with the resolved configs."""
import pytest
from common import ROOT, load_tool
from mmengine.config import Config

audit = load_tool('analysis/recipe_audit.py')
RECIPES = sorted(ROOT.glob('configs/*/recipe.yml'))


def families():
    for path in RECIPES:
        content = audit.load(path)
        for table in content['tables']:
            yield pytest.param(path, content, table, id=f'{path.parent.name}-{table["title"]}')


@pytest.mark.parametrize('path, content, table', families())
def test_here_is_what_the_configs_resolve_to(path, content, table):
    cfgs = {name: Config.fromfile(path.parent / name) for name in table['configs']}
    wrong = [(row.config, row.field, actual, row.expected)
             for row in audit.rows(dict(content, tables=[table]))
             if not audit.same(actual := audit.look_up(cfgs[row.config], row.key), row.expected)]
    assert not wrong


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.parent.name)
def test_page_is_written_from_the_data(path):
    assert (path.parent / 'RECIPE.md').read_text() == audit.markdown(audit.load(path))


def test_look_up_and_comparison():
    cfg = Config(dict(steps=[dict(type='mm.A', x=(1, 2)), dict(type='B')], lr=0.1))
    assert audit.look_up(cfg, 'steps[A].x') == (1, 2)
    assert audit.look_up(cfg, 'steps[1].type') == 'B'
    assert audit.look_up(cfg, 'steps[C].x') is None and audit.look_up(cfg, 'lr.y') is None
    assert audit.same((1, 2.0), [1, 2]) and audit.same(0.1 + 0.2, 0.3)
    assert not audit.same(None, 0.1) and not audit.same([1], [1, 2])
