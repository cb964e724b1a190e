"""Write scikit-learn's 1797 handwritten digits as an ImageNet-layout folder.

    OUT/train/0/0000.png ...   OUT/val/0/0010.png ...

The images are the 8x8 scans that come with scikit-learn (grey, 17 levels); nothing is
downloaded. The split is fixed: in every class, every fifth digit goes to ``val`` (364 images)
and the others to ``train`` (1433). The folder appears only when it is complete; running the
tool again leaves a complete folder unchanged.
"""
import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict

import cv2
import numpy as np

SPLITS = ('train', 'val')
NUM_DIGITS = 1797


def split_indices(labels: np.ndarray) -> Dict[str, np.ndarray]:
    """The fixed, stratified split.

    Args:
        labels (np.ndarray): class of every digit, ``[N]``.

    Returns:
        dict: sorted indices under 'train' and 'val'; every fifth digit of a class is in 'val'.
    """
    rank_in_class = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank_in_class[members] = np.arange(len(members))
    in_val = rank_in_class % 5 == 0
    return {'train': np.flatnonzero(~in_val), 'val': np.flatnonzero(in_val)}


def _write_images(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for split, indices in split_indices(labels).items():
        for label in np.unique(labels):
            (root / split / str(label)).mkdir(parents=True)
        for index in indices:
            path = root / split / str(labels[index]) / f'{index:04d}.png'
            # 16 is the darkest level of the scans.
            pixels = (images[index] * (255 / 16)).round().astype(np.uint8)
            if not cv2.imwrite(str(path), pixels):
                raise OSError(f'could not write {path}')


def write_digits(out: str) -> bool:
    """Write the two splits.

    Args:
        out (str): folder to create.

    Returns:
        bool: False if the folder was already complete.

    Raises:
        FileExistsError: if ``out`` contains something that this tool did not write.
    """
    root = Path(out)
    if root.is_dir() and any(root.iterdir()):
        found = sum(count_images(out).values())
        if found == NUM_DIGITS:
            return False
        raise FileExistsError(
            f'{root} is not empty and holds {found} of the {NUM_DIGITS} digits; move it away '
            'or choose another --out')
    from sklearn.datasets import load_digits
    digits = load_digits()
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written next to the target and renamed, so that an interrupted run leaves no partial folder.
    scratch = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        built = scratch / root.name
        _write_images(built, digits.images, digits.target)
        os.replace(built, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def count_images(out: str) -> Dict[str, int]:
    """Number of images of each split under ``out``."""
    return {split: sum(1 for _ in Path(out, split).glob('*/*.png')) for split in SPLITS}


def main(argv=None) -> int:
    """Command line entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', default='data/digits', help='folder to write')
    args = parser.parse_args(argv)
    try:
        written = write_digits(args.out)
    except OSError as error:
        print(f'digits_imagenet.py: {error}', file=sys.stderr)
        return 1
    counts = ', '.join(f'{count} {split}' for split, count in count_images(args.out).items())
    print(f'digits {"written to" if written else "already in"} {args.out}: {counts} images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
