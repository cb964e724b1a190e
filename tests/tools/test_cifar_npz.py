import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

TOOL = Path(__file__).resolve().parents[2] / 'tools/dataset_converters/cifar_npz.py'


def archive(path: Path, **changes) -> Path:
    rng = np.random.RandomState(0)
    arrays = dict(
        classes=np.array(['cat', 'dog']),
        train_images=rng.randint(0, 256, (5, 8, 8, 3), dtype=np.uint8),
        train_labels=np.array([0, 1, 1, 0, 1]),
        test_images=rng.randint(0, 256, (2, 8, 8, 3), dtype=np.uint8),
        test_labels=np.array([1, 0]))
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def run(*args) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True)


def test_images_keep_their_pixels_and_classes(tmp_path):
    source = archive(tmp_path / 'a.npz')
    result = run(source, tmp_path / 'out')
    assert result.returncode == 0 and '5 train, 2 val' in result.stdout
    names = sorted(str(p.relative_to(tmp_path / 'out')) for p in tmp_path.glob('out/*/*/*.png'))
    assert names == [
        'train/cat/00000.png', 'train/cat/00003.png', 'train/dog/00001.png',
        'train/dog/00002.png', 'train/dog/00004.png', 'val/cat/00001.png', 'val/dog/00000.png']
    written = cv2.imread(str(tmp_path / 'out/train/cat/00003.png'))[..., ::-1]
    np.testing.assert_array_equal(written, np.load(source)['train_images'][3])
    again = run(source, tmp_path / 'out')
    assert again.returncode == 1 and 'is not empty' in again.stderr


@pytest.mark.parametrize('changes, message', [
    (dict(test_labels=None), r"lacks ['test_labels']"),
    (dict(train_images=np.zeros((5, 8, 8), np.uint8)), 'train_images must be uint8 [N, H, W, 3]'),
    (dict(train_labels=np.zeros(3, int)), 'train_labels has shape (3,) for 5 images'),
    (dict(test_labels=np.array([0, 2])), 'test_labels must be in [0, 2), got 0 to 2'),
    (dict(classes=np.array(['cat', '../dog'])), 'classes must be names of folders'),
])
def test_bad_archives_are_named(tmp_path, changes, message):
    result = run(archive(tmp_path / 'a.npz', **changes), tmp_path / 'out')
    assert result.returncode == 1 and message in result.stderr
    assert 'Traceback' not in result.stderr


def test_other_files_are_named(tmp_path):
    (tmp_path / 'cut.npz').write_bytes(b'PK\x03\x04cut')
    (tmp_path / 'text.npz').write_text('text')
    np.save(tmp_path / 'single.npy', np.zeros(3))
    for name in ('cut.npz', 'text.npz', 'single.npy'):
        result = run(tmp_path / name, tmp_path / 'out')
        assert result.returncode == 1 and f'{name} is no .npz archive' in result.stderr


def test_missing_archive(tmp_path):
    result = run(tmp_path / 'none.npz', tmp_path / 'out')
    assert result.returncode == 1 and 'none.npz' in result.stderr
