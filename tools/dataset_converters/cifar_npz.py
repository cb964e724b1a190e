"""Write a CIFAR-like .npz archive as an ImageNet-layout folder.

    python tools/dataset_converters/cifar_npz.py cifar10.npz data/cifar10
    data/cifar10/train/airplane/00000.png ...   data/cifar10/val/airplane/00000.png ...

The archive holds ``train_images`` and ``test_images`` (uint8 RGB, ``[N, H, W, 3]``),
``train_labels`` and ``test_labels`` (integers, ``[N]``) and ``classes`` (names).
"""
import argparse
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np

SPLITS = {'train': 'train', 'val': 'test'}
KEYS = ['classes', 'train_images', 'train_labels', 'test_images', 'test_labels']


def convert(source: str, out: str) -> dict:
    """Write the images.

    Args:
        source (str): The archive.
        out (str): Folder to create.

    Returns:
        dict: Number of images of each split.

    Raises:
        FileExistsError: If ``out`` is not empty.
        ValueError: If the archive lacks an array, or its arrays do not match.
    """
    root = Path(out)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f'{out} is not empty: give a new folder')
    try:
        archive = np.load(source, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{source} is no .npz archive: {error}') from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f'{source} is no .npz archive: it holds a single array')
    with archive:
        missing = [key for key in KEYS if key not in archive]
        if missing:
            raise ValueError(f'{source} lacks {missing}: expected the arrays {KEYS}')
        arrays = {key: archive[key] for key in KEYS}
    classes = arrays['classes']
    if any(str(name) in ('', '.', '..') or Path(str(name)).name != str(name) for name in classes):
        raise ValueError(f'classes must be names of folders, got {classes.tolist()}')
    counts = {}
    for split, prefix in SPLITS.items():
        images, labels = arrays[f'{prefix}_images'], arrays[f'{prefix}_labels']
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f'{prefix}_images must be uint8 [N, H, W, 3], got {images.dtype} '
                             f'{images.shape}')
        if labels.shape != images.shape[:1]:
            raise ValueError(f'{prefix}_labels has shape {labels.shape} for {len(images)} images')
        if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f'{prefix}_labels must be in [0, {len(classes)}), got '
                             f'{labels.min()} to {labels.max()}')
        for name in classes:
            (root / split / str(name)).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels)):
            path = root / split / str(classes[label]) / f'{index:05d}.png'
            if not cv2.imwrite(str(path), image[..., ::-1]):
                raise OSError(f'could not write {path}')
        counts[split] = len(images)
    return counts


def main(argv=None) -> int:
    """Command line entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='the .npz archive')
    parser.add_argument('out', help='folder to create')
    args = parser.parse_args(argv)
    try:
        counts = convert(args.source, args.out)
    except (OSError, ValueError) as error:
        print(f'cifar_npz.py: {error}', file=sys.stderr)
        return 1
    print(f'{args.out}: ' + ', '.join(f'{count} {split}' for split, count in counts.items()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
