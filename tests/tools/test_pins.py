import pytest
from common import load_tool

pins = load_tool('pins.py')

PINNED = {'torch': '2.11.0', 'numpy': '2.4.6', 'mmdet': '3.3.0'}


@pytest.fixture
def environment(monkeypatch):
    found = {'torch': '2.11.0+cpu', 'numpy': '1.26.4', 'scipy': '1.15.0'}
    monkeypatch.setattr(pins, 'installed', found.get)


def test_markers_choose_the_pin_of_the_running_python():
    text = '# a stack\ntorch==2.11.0\nnumpy==2.4.6; python_version >= "3.11"\n' \
        'numpy==2.2.6; python_version < "3.11"  # the last one\n'
    assert pins.read_pins(text, new_python=True) == {'torch': '2.11.0', 'numpy': '2.4.6'}
    assert pins.read_pins(text, new_python=False) == {'torch': '2.11.0', 'numpy': '2.2.6'}
    with pytest.raises(ValueError, match="cannot read the line 'torch>=2'"):
        pins.read_pins('torch>=2')


def test_constraints_file_is_read():
    for new_python in (True, False):
        read = pins.read_pins(pins.CONSTRAINTS.read_text(), new_python)
        assert {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmcv-lite', 'numpy'} <= set(read)


def test_missing_and_outdated(environment):
    names = ['torch', 'numpy', 'scipy', 'mmdet']
    assert pins.missing(names, PINNED, exact=False) == ['mmdet']
    assert pins.missing(names, PINNED, exact=True) == ['numpy', 'mmdet']


def test_an_existing_environment_is_kept(environment):
    assert pins.keep_installed(PINNED) == ['torch==2.11.0+cpu', 'numpy==1.26.4', 'mmdet==3.3.0']


def test_a_fork_is_what_it_is_imported_as(monkeypatch):
    found = {'onedl-mmsegmentation': '1.4.2', 'onedl-mmcv': '2.3.6'}

    def version(name):
        if name not in found:
            raise pins.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(pins, 'version', version)
    monkeypatch.setattr(pins, 'packages_distributions', lambda: {
        'mmseg': ['onedl-mmsegmentation'], 'mmcv': ['onedl-mmcv']})
    monkeypatch.setattr(pins, 'find_spec', lambda module: module == 'mmpretrain' or None)
    wanted = ['mmsegmentation', 'mmcv', 'mmcv-lite', 'mmpretrain', 'mmdet', 'scipy']
    assert pins.missing(wanted, {}, exact=False) == ['mmdet', 'scipy']
    assert pins.keep_installed({'mmsegmentation': '1.2.2', 'mmpretrain': '1.2.0'}) == [
        'mmsegmentation==1.4.2', 'mmpretrain==1.2.0']
    assert pins.sources('mmcv') == ['onedl-mmcv']
