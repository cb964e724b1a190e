"""Run an exported graph on images, draw what it finds, and print the time.

Needs only onnxruntime, numpy and opencv: neither torch nor any of the mm libraries.
"""
import argparse
import json
import sys
import time
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Tuple

import cv2
import numpy as np
import onnxruntime

# Metadata of a file; the last four are optional.
_KEYS = ('mmcontext', 'task', 'preprocess', 'mean', 'std', 'channel_order', 'pad_divisor',
         'pad_value', 'resize', 'input_size', 'classes', 'palette', 'masks', 'mask_threshold')
_OPTIONAL = _KEYS[-4:]
_INTERPOLATIONS = {'nearest': cv2.INTER_NEAREST, 'bilinear': cv2.INTER_LINEAR,
                   'bicubic': cv2.INTER_CUBIC, 'area': cv2.INTER_AREA,
                   'lanczos': cv2.INTER_LANCZOS4}


class UsageError(Exception):
    """What the user did wrong, in one sentence."""


class Placement(NamedTuple):
    """Where an image lies in the input of a graph.

    Attributes:
        image: uint8 [height, width, 3], as the graph takes it before normalisation.
        scale: Width and height over those of the original.
        crop: Whether a part of the image was cut out.
    """
    image: np.ndarray
    scale: Tuple[float, float]
    crop: bool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='file that export_onnx.py wrote')
    parser.add_argument('images', nargs='+', metavar='image')
    parser.add_argument('--library', help='library that export_onnx.py --own-operators wrote')
    parser.add_argument('--out-dir', type=Path, help='folder for the pictures')
    parser.add_argument('--score', type=float, default=0.3,
                        help='draw detections from this score on (default: 0.3)')
    parser.add_argument('--enlarge', type=int, default=1,
                        help='size of the pictures over that of the images')
    args = parser.parse_args()
    if args.enlarge < 1:
        parser.error(f'--enlarge must be at least 1, got {args.enlarge}')
    if not 0 <= args.score <= 1:
        parser.error(f'--score must be from 0 to 1, got {args.score}')
    return args


def load(path: str, library: Optional[str] = None
         ) -> Tuple[onnxruntime.InferenceSession, dict]:
    """The session of a file, and its metadata."""
    if not Path(path).is_file():
        raise UsageError(f'{path} does not exist')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Errors are raised; do not log them too.
    try:
        if library:
            # (A bare name would be looked up on the system's library path.)
            options.register_custom_ops_library(str(Path(library).resolve()))
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's errors have no common base
        reason = str(error).partition('\n')[0]
        hint = '' if library else ' (a file with own operators needs --library)'
        raise UsageError(f'{path} cannot be loaded by onnxruntime{hint}: {reason}') from error
    entries = session.get_modelmeta().custom_metadata_map
    try:
        metadata = {key: json.loads(entries[key]) for key in _KEYS
                    if key not in _OPTIONAL or key in entries}
    except (KeyError, ValueError) as error:
        raise UsageError(f'{path} was not written by export_onnx.py: its metadata does not tell '
                         'what goes in and comes out') from error
    if len(session.get_inputs()[0].shape) != 4:
        raise UsageError(f'{path} reads sequences, not images')
    return session, metadata


def place(image: np.ndarray, metadata: dict) -> Placement:
    """Resize and crop an image like the config's test pipeline."""
    height, width = image.shape[:2]
    crop = False
    for step in metadata['resize']:
        rows, columns = image.shape[:2]
        if step['type'] == 'center_crop':
            crop_width, crop_height = step['size']
            top = max(0, int(round((rows - crop_height) / 2)))
            left = max(0, int(round((columns - crop_width) / 2)))
            image, crop = image[top:top + crop_height, left:left + crop_width], True
            continue
        if step['type'] == 'resize_short':
            factor = step['size'] / min(rows, columns)
            size = (step['size'] if columns <= rows else int(columns * factor),
                    step['size'] if rows <= columns else int(rows * factor))
        elif step['type'] != 'resize':
            raise UsageError(f'{step["type"]} of the config has no counterpart here')
        elif step['keep_ratio']:
            factor = min(max(step['size']) / max(rows, columns),
                         min(step['size']) / min(rows, columns))
            size = int(columns * factor + 0.5), int(rows * factor + 0.5)
        else:
            size = tuple(step['size'])
        # (A very narrow image could be resized to no pixel at all.)
        image = cv2.resize(image, (max(1, size[0]), max(1, size[1])),
                           interpolation=_INTERPOLATIONS[step['interpolation']])
    return Placement(image, (image.shape[1] / width, image.shape[0] / height), crop)


def inputs_of(session: onnxruntime.InferenceSession, image: np.ndarray,
              metadata: dict) -> Dict[str, np.ndarray]:
    """The inputs of a graph for a resized image."""
    names = [node.name for node in session.get_inputs()]
    height, width = image.shape[:2]
    if metadata['preprocess'] == 'in':
        return {names[0]: image[None]}
    x = image[..., ::-1] if metadata['channel_order'] == 'rgb' else image
    x = (x.astype(np.float32) - np.float32(metadata['mean'])) / np.float32(metadata['std'])
    bottom, right = (-side % metadata['pad_divisor'] for side in (height, width))
    x = np.pad(x, ((0, bottom), (0, right), (0, 0)), constant_values=metadata['pad_value'])
    inputs = {names[0]: np.ascontiguousarray(x.transpose(2, 0, 1)[None])}
    if len(names) > 1:
        inputs[names[1]] = np.array([[height, width]])
    return inputs


def colour(label: int, metadata: dict) -> Tuple[int, int, int]:
    """BGR of a class."""
    palette = metadata.get('palette')
    if palette and label < len(palette):
        return tuple(int(value) for value in reversed(palette[label]))
    hue = np.uint8([[[label * 67 % 180, 200, 255]]])
    return tuple(int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0])


def class_name(label: int, metadata: dict) -> str:
    """Name of a class; its number if the file does not name it."""
    names = metadata.get('classes') or []
    return names[label] if label < len(names) else f'class {label}'


def write(picture: np.ndarray, text: str, at: Tuple[int, int]) -> None:
    """Write text on a picture, white on dark."""
    scale = max(0.35, min(picture.shape[:2]) / 1000)
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = max(0, min(at[0], picture.shape[1] - width))
    y = max(height + base, at[1])
    cv2.rectangle(picture, (x, y - height - base), (x + width, y), (30, 30, 30), -1)
    cv2.putText(picture, text, (x, y - base), cv2.FONT_HERSHEY_SIMPLEX, scale,
                (255, 255, 255), 1, cv2.LINE_AA)


def paste(mask: np.ndarray, box: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Paste probabilities within a box into an image of that height and width, bilinearly."""
    def weights(low: float, high: float, length: int, cells: int) -> np.ndarray:
        position = (np.arange(length) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
        return np.clip(1 - np.abs(position[:, None] - np.arange(cells)), 0, None)

    return (weights(box[1], box[3], size[0], mask.shape[0]) @ mask
            @ weights(box[0], box[2], size[1], mask.shape[1]).T)


def draw_detections(picture: np.ndarray, found: Dict[str, np.ndarray], placement: Placement,
                    metadata: dict, args: argparse.Namespace) -> str:
    """Draw boxes, names and masks; returns what to print."""
    chosen = found['scores'][0] >= args.score
    height, width = picture.shape[:2]
    factor = np.tile([width / placement.image.shape[1], height / placement.image.shape[0]], 2)
    numbers = np.flatnonzero(chosen & (found['labels'][0] >= 0))
    boxes = found['boxes'][0] * factor
    for number in numbers if 'masks' in found else ():
        mask = found['masks'][0, number]
        if metadata['masks'] == 'box':
            mask = paste(mask, boxes[number], (height, width)) >= metadata['mask_threshold']
        else:
            mask = mask[:placement.image.shape[0], :placement.image.shape[1]]
            mask = cv2.resize(mask.astype(np.float32), (width, height)) >= 0.5
        shade = np.array(colour(found['labels'][0, number], metadata))
        picture[mask] = 0.5 * picture[mask] + 0.5 * shade
    for number in numbers[::-1]:
        label = int(found['labels'][0, number])
        left, top, right, bottom = (int(round(value)) for value in boxes[number])
        cv2.rectangle(picture, (left, top), (right, bottom), colour(label, metadata), 1)
        write(picture, f'{class_name(label, metadata)} {found["scores"][0, number]:.2f}',
              (left, top))
    return f'{len(numbers)} detections'


def draw_classes(picture: np.ndarray, found: Dict[str, np.ndarray], metadata: dict) -> str:
    """Tint every pixel by its class; returns what to print."""
    height, width = picture.shape[:2]
    if 'labels' in found:
        labels = cv2.resize(found['labels'][0].astype(np.float32), (width, height),
                            interpolation=cv2.INTER_NEAREST).astype(int)
    else:
        logits = [cv2.resize(plane, (width, height)) for plane in found['logits'][0]]
        labels = np.argmax(logits, axis=0) if len(logits) > 1 else (logits[0] > 0).astype(int)
    present = np.unique(labels).tolist()
    for label in present:
        inside = labels == label
        picture[inside] = 0.5 * picture[inside] + 0.5 * np.array(colour(label, metadata))
    return ', '.join(class_name(label, metadata) for label in present)


def draw(image: np.ndarray, found: Dict[str, np.ndarray], placement: Placement, metadata: dict,
         args: argparse.Namespace) -> Tuple[np.ndarray, str]:
    """The picture of a result, and the line to print."""
    picture = cv2.resize(image, None, fx=args.enlarge, fy=args.enlarge)
    if metadata['task'] == 'classification':
        logits = found['logits'][0]
        scores = np.exp(logits - logits.max())
        best = int(scores.argmax())
        text = f'{class_name(best, metadata)} {scores[best] / scores.sum():.2f}'
        write(picture, text, (0, 0))
        return picture, text
    if placement.crop:
        raise UsageError('the config cuts out the middle of its images, which is not drawn here')
    if metadata['task'] == 'segmentation':
        return picture, draw_classes(picture, found, metadata)
    return picture, draw_detections(picture, found, placement, metadata, args)


def infer(args: argparse.Namespace) -> None:
    """Run the graph on all images."""
    session, metadata = load(args.model, args.library)
    names = [node.name for node in session.get_outputs()]
    for path in args.images:
        if not Path(path).is_file():
            raise UsageError(f'{path} does not exist')
        image = cv2.imread(path)
        if image is None:
            raise UsageError(f'{path} cannot be read as an image')
        placement = place(image, metadata)
        size = metadata['input_size']
        if size and metadata['task'] != 'detection' and tuple(size) != placement.image.shape[:2]:
            placement = place(image, {'resize': [dict(type='resize', size=size[::-1],
                                                      keep_ratio=False,
                                                      interpolation='bilinear')]})
        inputs = inputs_of(session, placement.image, metadata)
        start = time.perf_counter()
        try:
            found = dict(zip(names, session.run(None, inputs)))
        except Exception as error:
            reason = str(error).partition('\n')[0]
            raise UsageError(f'{args.model} does not take {path}: {reason}') from error
        milliseconds = 1000 * (time.perf_counter() - start)
        picture, text = draw(image, found, placement, metadata, args)
        print(f'{path}: {text}, {milliseconds:.1f} ms')
        if args.out_dir is not None:
            args.out_dir.mkdir(parents=True, exist_ok=True)
            out = args.out_dir / f'{Path(path).stem}.png'
            if not cv2.imwrite(str(out), picture):
                raise UsageError(f'{out} cannot be written')


def main() -> int:
    """Command line entry point; returns the exit status."""
    try:
        infer(parse_args())
    except (UsageError, OSError) as error:
        print(f'infer_onnx.py: error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
