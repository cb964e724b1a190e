"""Export the network of a config to ONNX.

Classifiers output logits; segmentors logits at the size of the image; detectors of mmdet boxes,
scores, labels and masks after the config's own suppression and limits. If onnxruntime is
installed, the file is compared with torch before the tool reports success.

All operators are standard ones, which any runtime supports. With --own-operators the aggregation
of CoT, involution and C-volution is a single operator, faster on CPUs, and the library that
onnxruntime needs for it is written next to the file.
"""
import argparse
import sys
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import cv2
import numpy as np

from mmcontext.deployment.checking import compare, finite_inputs, image_inputs
from mmcontext.deployment.graph import OPSET, Detection, Graph, build_graph, export
from mmcontext.deployment.onnx_file import prepare_output
from mmcontext.deployment.onnxruntime_library import write_library
from mmcontext.deployment.runtime import OnnxGraph
from mmcontext.utils.cli import add_cfg_options, load_config, run
from mmcontext.utils.errors import UserError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a classifier, detector or segmentor')
    parser.add_argument('checkpoint', nargs='?',
                        help='checkpoint file; without one the initial weights are exported')
    parser.add_argument('--out', help='file to write (default: CONFIG_NAME.onnx)')
    parser.add_argument(
        '--preprocess', choices=['in', 'out'], default='out',
        help='in: the graph takes uint8 images as OpenCV reads them, [batch, height, width, 3]; '
        'out: normalised and padded ones, [batch, 3, height, width] (default)')
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='SIZE',
        help="input without the batch, e.g. 3 256 192 (default: the backbone's channels and the "
        "size of the config's test pipeline)")
    parser.add_argument(
        '--dynamic-size', action=argparse.BooleanOptionalAction, default=None,
        help='let height and width, or the length, vary too, as the batch always may (default: for '
        'detectors and segmentors)')
    parser.add_argument('--argmax', action='store_true',
                        help='segmentors: classes [batch, height, width] instead of logits')
    parser.add_argument(
        '--masks', choices=['image', 'box'], default='image',
        help="detectors: masks of the image's size (default), or probabilities within the box")
    parser.add_argument(
        '--own-operators', action='store_true',
        help="for onnxruntime on a CPU: the aggregation as this package's operator, whose library "
        'is written too (needs a C++ compiler here, not where the file is run)')
    parser.add_argument('--opset', type=int, default=OPSET, help=f'default: {OPSET}')
    parser.add_argument('--images', nargs='+', default=[], metavar='FILE',
                        help='images to compare with torch on, in place of noise')
    add_cfg_options(parser)
    return parser.parse_args()


def read_images(paths: List[str], graph: Graph) -> Iterator[Tuple[str, np.ndarray]]:
    """Images in the size that a graph takes, uint8 [1, H, W, 3], with their names."""
    size = graph.metadata['input_size']
    for path in paths:
        image = cv2.imread(path)
        if image is None:
            raise UserError(f'{path} cannot be read as an image')
        if size:
            image = cv2.resize(image, (size[1], size[0]))
        yield path, image[None]


def check(graph: Graph, path: str, library: Optional[str], args: argparse.Namespace) -> None:
    """Compare a file with torch and print how closely they agree.

    Raises:
        UserError: They do not agree.
    """
    onnx = OnnxGraph(path, library)
    if args.images:
        cases = ((name, image_inputs(graph, image))
                 for name, image in read_images(args.images, graph))
    elif isinstance(graph.module, Detection):
        print('not compared with torch: a detector finds nothing in noise, give --images')
        return
    else:
        cases = ((f'batch {batch}', finite_inputs(graph, batch)) for batch in (1, 3))
    for name, inputs in cases:
        agreement = compare(graph, onnx, inputs)
        if not agreement:
            raise UserError(f'{path} is not the network of {args.config}; {name}: {agreement}')
        print(f'{name}: {agreement} in onnxruntime')


def main() -> None:
    """Command line entry point."""
    args = parse_args()
    args.launcher, args.work_dir, args.local_rank = 'none', None, 0
    cfg = load_config(args)
    out = args.out or f'{Path(args.config).stem}.onnx'
    prepare_output(out)
    graph = build_graph(cfg, args.checkpoint, args.shape, args.preprocess, args.dynamic_size,
                        args.argmax, args.masks)
    export(graph, out, args.opset, args.own_operators)
    library = str(write_library(Path(out).parent)) if args.own_operators else None
    print(f'{out}: {", ".join(graph.inputs)} -> {", ".join(graph.outputs)}, '
          f'{Path(out).stat().st_size / 2**20:.1f} MiB{f"; it needs {library}" if library else ""}')
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        print('not compared with torch: onnxruntime is not installed')
        return
    check(graph, out, library, args)


if __name__ == '__main__':
    sys.exit(run(main))
