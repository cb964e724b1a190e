"""Write scenes of real handwritten digits for detection and segmentation.

Each scene is a small textured canvas on which a few of scikit-learn's 1797 scanned digits
are placed at random sizes, angles and tints. The scenes are a function of the seed alone;
training and validation scenes are made from different digits (every fifth digit is kept for
validation). Two layouts are written from the same scenes:

``coco`` (boxes and instance masks, 10 classes)::

    OUT/annotations/instances_train.json   OUT/train/000000.png ...
    OUT/annotations/instances_val.json     OUT/val/000000.png ...

``cityscapes`` (semantic maps, 11 classes: 0 background, 1 + d for the digit d)::

    OUT/leftImg8bit/{train,val}/digits/digits_000000_leftImg8bit.png
    OUT/gtFine/{train,val}/digits/digits_000000_gtFine_labelTrainIds.png

The folder appears only when it is complete. Running the tool again with the same options
leaves an existing folder unchanged.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import cv2
import numpy as np

DIGIT_NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SPLITS = ('train', 'val')
LAYOUTS = ('coco', 'cityscapes')
DEFAULT_OUT = {'coco': 'data/digits_coco', 'cityscapes': 'data/digits_cityscapes'}
MANIFEST = 'digits_scenes.json'
# Increased whenever the same options would give different scenes.
VERSION = 1

MIN_SIZE = 48
# Digit height as a share of the canvas side.
DIGIT_SHARE = (0.2, 0.45)
# Largest overlap of two placed digits, as a share of the smaller box.
MAX_OVERLAP = 0.1
PLACEMENT_TRIALS = 30


class Scene(NamedTuple):
    """One scene.

    Attributes:
        image (np.ndarray): uint8 ``[size, size, 3]``, BGR.
        masks (np.ndarray): bool ``[N, size, size]``, the visible pixels of each digit; no two
            overlap and none is empty.
        labels (np.ndarray): int64 ``[N]``, the digits 0 to 9.
    """
    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray

    def boxes(self) -> np.ndarray:
        """Tight boxes around the masks, int64 ``[N, 4]`` as x, y, width, height in pixels."""
        boxes = np.zeros((len(self.masks), 4), dtype=np.int64)
        for box, mask in zip(boxes, self.masks):
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box[:] = xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1
        return boxes

    def semantic_map(self) -> np.ndarray:
        """uint8 ``[size, size]``: 0 for the background, 1 + d where the digit d is visible."""
        labels = np.zeros(self.image.shape[:2], dtype=np.uint8)
        for mask, label in zip(self.masks, self.labels):
            labels[mask] = label + 1
        return labels


def load_digits(split: str) -> Tuple[np.ndarray, np.ndarray]:
    """The real digits that a split is made from.

    Args:
        split (str): 'train' (four fifths of the 1797 digits) or 'val' (the rest).

    Returns:
        tuple: images, float32 ``[N, 8, 8]`` in 0..1, and labels, int64 ``[N]``.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    from sklearn.datasets import load_digits as sklearn_digits
    bunch = sklearn_digits()
    kept_for_val = np.arange(len(bunch.target)) % 5 == 0
    chosen = kept_for_val if split == 'val' else ~kept_for_val
    images = (bunch.images[chosen] / 16).astype(np.float32)
    return images, bunch.target[chosen].astype(np.int64)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark texture, float32 ``[size, size, 3]`` in 0..0.45: coarse and fine noise, some lines."""
    coarse = rng.uniform(0.05, 0.35, (4, 4, 3)).astype(np.float32)
    canvas = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(2, 6)):
        ends = rng.integers(0, size, 4).tolist()
        colour = rng.uniform(0.0, 0.45, 3).tolist()
        cv2.line(canvas, ends[:2], ends[2:], colour, int(rng.integers(1, 4)))
    canvas += rng.normal(0, 0.03, (size, size, 1)).astype(np.float32)
    return canvas.clip(0, 0.45)


def _render(digit: np.ndarray, height: int, angle: float, aspect: float) -> np.ndarray:
    """Enlarge an 8x8 digit to about ``height`` pixels, rotated by ``angle`` degrees.

    Returns:
        np.ndarray: float32 ``[h, w]`` ink in 0..1, cropped to the ink.
    """
    scale = height / 8
    side = int(np.ceil(height * 1.7))
    matrix = cv2.getRotationMatrix2D((3.5, 3.5), angle, scale)
    matrix[:, 0] *= aspect
    matrix[:, 2] += (side - 1) / 2 - matrix @ (3.5, 3.5, 1)
    ink = cv2.warpAffine(digit, matrix, (side, side), flags=cv2.INTER_CUBIC).clip(0, 1)
    seen = ink > 0.4
    ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return ink[ys[0]:ys[-1] + 1, xs[0]:xs[-1] + 1]


def make_scene(images: np.ndarray, labels: np.ndarray, size: int,
               rng: np.random.Generator) -> Scene:
    """Compose one scene of one to six digits.

    Args:
        images (np.ndarray): digits to draw from, float32 ``[N, 8, 8]`` in 0..1.
        labels (np.ndarray): their classes, ``[N]``.
        size (int): side of the canvas in pixels.
        rng (np.random.Generator): the only source of randomness.

    Returns:
        Scene: with at least one digit. Boxes of different digits share at most a tenth of
        the smaller one.
    """
    canvas = _background(rng, size)
    masks: List[np.ndarray] = []
    boxes: List[Tuple[int, int, int, int]] = []
    classes: List[int] = []
    for _ in range(rng.integers(2, 7)):
        index = int(rng.integers(len(images)))
        height = int(round(size * rng.uniform(*DIGIT_SHARE)))
        ink = _render(images[index], height, rng.uniform(-15, 15), rng.uniform(0.8, 1.2))
        h, w = ink.shape
        tint = rng.uniform(0.65, 1.0, 3).astype(np.float32)
        for _ in range(PLACEMENT_TRIALS):
            x, y = int(rng.integers(0, size - w + 1)), int(rng.integers(0, size - h + 1))
            if all(_overlap((x, y, w, h), box) <= MAX_OVERLAP for box in boxes):
                break
        else:
            continue
        boxes.append((x, y, w, h))
        window = canvas[y:y + h, x:x + w]
        alpha = np.clip((ink - 0.25) / 0.3, 0, 1)[..., None]
        window += alpha * (tint - window)
        mask = np.zeros((size, size), dtype=bool)
        mask[y:y + h, x:x + w] = ink > 0.4
        for below in masks:
            below &= ~mask
        masks.append(mask)
        classes.append(int(labels[index]))
    image = (canvas * 255).round().clip(0, 255).astype(np.uint8)
    return Scene(image, np.stack(masks), np.array(classes, dtype=np.int64))


def _overlap(a: Tuple[int, int, int, int], b: Tuple[int, int, int, int]) -> float:
    """Share of the smaller of two x, y, width, height boxes that lies in the other."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])


def scenes(split: str, count: int, size: int = 128, seed: int = 0):
    """Yield the first ``count`` scenes of a split.

    Scene i depends on the seed, the split, the size and i, and not on ``count``.

    Args:
        split (str): 'train' or 'val'.
        count (int): number of scenes.
        size (int): side of the square canvas in pixels, at least 48. Defaults to 128.
        seed (int): defaults to 0.

    Yields:
        Scene: the next scene.
    """
    if size < MIN_SIZE:
        raise ValueError(f'size must be at least {MIN_SIZE} pixels, got {size}')
    images, labels = load_digits(split)
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        yield make_scene(images, labels, size, rng)


def encode_rle(mask: np.ndarray) -> Dict:
    """COCO's uncompressed run lengths of a bool mask ``[H, W]``, column by column."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [0]])
    # Positions where the value changes; runs alternate, starting with zeros.
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    if counts[-1] == 0:
        counts = counts[:-1]
    return {'counts': counts.tolist(), 'size': list(mask.shape)}


def write_coco(root: Path, split: str, count: int, size: int, seed: int) -> None:
    """Write images and a COCO annotation file of one split under ``root``."""
    (root / split).mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    coco = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': name} for i, name in enumerate(DIGIT_NAMES)],
    }
    for index, scene in enumerate(scenes(split, count, size, seed)):
        file_name = f'{index:06d}.png'
        _write_image(root / split / file_name, scene.image)
        coco['images'].append(
            {'id': index, 'file_name': file_name, 'height': size, 'width': size})
        for mask, box, label in zip(scene.masks, scene.boxes(), scene.labels):
            coco['annotations'].append({
                'id': len(coco['annotations']) + 1,
                'image_id': index,
                'category_id': int(label),
                'bbox': box.tolist(),
                'area': int(mask.sum()),
                'segmentation': encode_rle(mask),
                'iscrowd': 0,
            })
    with open(root / 'annotations' / f'instances_{split}.json', 'w') as file:
        json.dump(coco, file)


def write_cityscapes(root: Path, split: str, count: int, size: int, seed: int) -> None:
    """Write images and label maps of one split under ``root``, as Cityscapes names them."""
    image_dir = root / 'leftImg8bit' / split / 'digits'
    label_dir = root / 'gtFine' / split / 'digits'
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    for index, scene in enumerate(scenes(split, count, size, seed)):
        stem = f'digits_{index:06d}'
        _write_image(image_dir / f'{stem}_leftImg8bit.png', scene.image)
        _write_image(label_dir / f'{stem}_gtFine_labelTrainIds.png', scene.semantic_map())


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f'could not write {path}')


def write_dataset(out: str, layout: str = 'coco', train: int = 1000, val: int = 150,
                  size: int = 128, seed: int = 0, force: bool = False) -> bool:
    """Write training and validation scenes.

    Args:
        out (str): folder to create.
        layout (str): 'coco' or 'cityscapes'. Defaults to 'coco'.
        train (int): training scenes. Defaults to 1000.
        val (int): validation scenes. Defaults to 150.
        size (int): side of a scene in pixels. Defaults to 128.
        seed (int): defaults to 0.
        force (bool): replace a folder that this tool wrote with other options. Defaults to
            False.

    Returns:
        bool: False if the folder already contained exactly these scenes.

    Raises:
        ValueError: for an unknown layout, a count below one or a size below 48.
        FileExistsError: if ``out`` contains something else.
    """
    writers = {'coco': write_coco, 'cityscapes': write_cityscapes}
    if layout not in writers:
        raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}')
    for name, value, least in (('train', train, 1), ('val', val, 1), ('size', size, MIN_SIZE),
                               ('seed', seed, 0)):
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    options = dict(version=VERSION, layout=layout, train=train, val=val, size=size, seed=seed)
    root = Path(out)
    ours = (root / MANIFEST).is_file()
    if ours and json.loads((root / MANIFEST).read_text()) == options:
        return False
    if root.exists() and not (ours and force) and not _is_empty_folder(root):
        hint = 'pass --force to replace it' if ours else 'choose another --out'
        what = 'scenes of other options' if ours else 'something else'
        raise FileExistsError(f'{root} already holds {what}; {hint}')

    root.parent.mkdir(parents=True, exist_ok=True)
    # Written next to the target and renamed, so that an interrupted run leaves no partial folder.
    scratch = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        built = scratch / root.name
        for split, count in (('train', train), ('val', val)):
            writers[layout](built, split, count, size, seed)
        (built / MANIFEST).write_text(json.dumps(options))
        if root.exists():
            os.rename(root, scratch / 'replaced')
        os.rename(built, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--layout', choices=LAYOUTS, default='coco')
    parser.add_argument('--out', help='folder to write (default: ' + ', '.join(
        f'{path} for {layout}' for layout, path in DEFAULT_OUT.items()) + ')')
    parser.add_argument('--train', type=int, default=1000, help='training scenes')
    parser.add_argument('--val', type=int, default=150, help='validation scenes')
    parser.add_argument('--size', type=int, default=128, help='side of a scene in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--force', action='store_true',
                        help='replace scenes that were written with other options')
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Command line entry point; returns the exit status."""
    args = parse_args(argv)
    out = args.out or DEFAULT_OUT[args.layout]
    try:
        written = write_dataset(out, args.layout, args.train, args.val, args.size, args.seed,
                                args.force)
    except (ValueError, FileExistsError) as error:
        print(f'digits_scenes.py: {error}', file=sys.stderr)
        return 1
    state = 'written to' if written else 'already in'
    print(f'{args.train} training and {args.val} validation scenes {state} {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
