"""The model zoo: metafile.yml, model-index.yml and the families' README.md."""
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
METAFILES = sorted(ROOT.glob('configs/*/metafile.yml'))
MODELS = {model['Name']: (path.parent, model) for path in METAFILES
          for model in yaml.safe_load(path.read_text())['Models']}
CONFIGS = sorted(path for path in ROOT.glob('configs/*/*.py') if path.parent.name != '_base_')


def test_model_index_imports_every_family():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert sorted(ROOT / path for path in index['Import']) == METAFILES
    assert {path.parent for path in METAFILES} == {path.parent for path in CONFIGS}


def test_model_index_is_in_mims_format():
    modelindex = pytest.importorskip('modelindex')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert len(index.models) == len(CONFIGS)


def test_zoo_lists_every_config_once():
    listed = [model['Config'] for path in METAFILES
              for model in yaml.safe_load(path.read_text())['Models']]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in CONFIGS)
    assert all(Path(model['Config']).stem == name for name, (_, model) in MODELS.items())


@pytest.mark.parametrize('path', METAFILES, ids=lambda path: path.parent.name)
def test_collections(path):
    content = yaml.safe_load(path.read_text())
    [collection] = content['Collections']
    assert ROOT / collection['README'] == path.parent / 'README.md'
    assert {model['In Collection'] for model in content['Models']} == {collection['Name']}


@pytest.mark.parametrize('path', METAFILES, ids=lambda path: path.parent.name)
def test_readme_links_every_config(path):
    text = (path.parent / 'README.md').read_text()
    links = [link for link in re.findall(r'\]\(([^)]+)\)', text) if '://' not in link]
    assert all((path.parent / link).is_file() for link in links)
    assert {p.name for p in CONFIGS if p.parent == path.parent} <= set(links)


@pytest.mark.parametrize('name', MODELS)
def test_figures_of_a_model(name):
    folder, model = MODELS[name]
    metadata = model['Metadata']
    # All accuracies here are quoted.
    assert ('Results' in model) == (metadata.get('Results From') == 'paper')
    reference = metadata.get('Reference Parameters (M)')
    if reference:
        digits = 3 if 'imagenet' in name else 1
        assert round(metadata['Parameters'] / 1e6, digits) == reference
    if 'Reference FLOPs (G)' in metadata:
        assert metadata['FLOPs'] / 1e9 == pytest.approx(metadata['Reference FLOPs (G)'], rel=0.02)
    readme = (folder / 'README.md').read_text()
    for result in model.get('Results', []):
        for value in result['Metrics'].values():
            [row] = [line for line in readme.splitlines() if f'({name}.py)' in line]
            assert f' {value} ' in row
