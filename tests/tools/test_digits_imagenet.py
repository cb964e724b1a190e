import cv2
import numpy as np
import pytest
from common import load_tool
from sklearn.datasets import load_digits

tool = load_tool('dataset_converters/digits_imagenet.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digits'
    assert tool.write_digits(str(out))
    return out


def test_every_digit_is_written_once_with_its_pixels_and_class(folder):
    digits = load_digits()
    files = sorted(folder.glob('*/*/*.png'), key=lambda path: path.name)
    assert [int(path.stem) for path in files] == list(range(1797))
    for path in files[::100]:
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        # Half a grey level of 255 is 0.031.
        np.testing.assert_allclose(pixels * (16 / 255), digits.images[int(path.stem)], atol=0.04)
        assert int(path.parent.name) == digits.target[int(path.stem)]


def test_split_is_fixed_and_stratified(folder):
    assert tool.count_images(str(folder)) == {'train': 1433, 'val': 364}
    per_class = [len(list((folder / 'val' / str(label)).iterdir())) for label in range(10)]
    assert min(per_class) >= 35 and max(per_class) <= 37
    assert (folder / 'val/0/0000.png').is_file() and (folder / 'train/0/0010.png').is_file()


def test_complete_folder_is_left_alone(folder):
    before = (folder / 'val/0/0000.png').stat().st_mtime_ns
    assert not tool.write_digits(str(folder))
    assert (folder / 'val/0/0000.png').stat().st_mtime_ns == before


def test_foreign_folder_is_not_touched(tmp_path, capsys):
    out = tmp_path / 'digits'
    out.mkdir()
    (out / 'notes.txt').write_text('mine')
    assert tool.main(['--out', str(out)]) == 1
    assert 'holds 0 of the 1797 digits' in capsys.readouterr().err
    assert (out / 'notes.txt').read_text() == 'mine'


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, '_write_images', interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool.write_digits(str(tmp_path / 'digits'))
    assert list(tmp_path.iterdir()) == []
