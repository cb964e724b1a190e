"""Write a smaller variant of an exported graph: in float16, or with convolutions in int8.

The conversions are onnxruntime's own and need the package onnx. Inputs, outputs and metadata do
not change, so test_onnx.py accepts the result. int8 is calibrated on training images of the
config, resized by its test pipeline; convolutions and linear layers become int8, while the
aggregation with dynamic kernels and everything in between stay float32.

    python tools/deployment/quantize_onnx.py model.onnx --config CONFIG --calibration 64
    python tools/deployment/quantize_onnx.py model.onnx --fp16
"""
import argparse
import copy
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mmcontext.deployment.onnx_file import operator_sets, prepare_output
from mmcontext.deployment.onnxruntime_library import DOMAIN
from mmcontext.deployment.preprocess import Preprocess, normalisation_of, test_dataset
from mmcontext.deployment.runtime import OnnxGraph
from mmcontext.utils.cli import add_cfg_options, load_config, run
from mmcontext.utils.data import check_dataset, explain
from mmcontext.utils.errors import UserError, required

# Products of activations, such as the aggregation's, are not among these.
_INT8 = ('Conv', 'Gemm')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='file that export_onnx.py wrote')
    parser.add_argument('--config', help='its config, for int8')
    parser.add_argument('--calibration', type=int, default=64, metavar='N',
                        help='training images to take the ranges of activations from '
                        '(default: 64)')
    parser.add_argument('--keep', metavar='PATTERN',
                        help='leave layers in float32 whose name matches this regular expression, '
                        'e.g. span for those that make the kernels of involutions')
    parser.add_argument('--library', help='library that export_onnx.py --own-operators wrote')
    parser.add_argument('--fp16', action='store_true', help='float16 instead of int8')
    parser.add_argument('--out', help='file to write (default: MODEL_int8.onnx, MODEL_fp16.onnx)')
    add_cfg_options(parser)
    args = parser.parse_args()
    if not args.fp16 and not args.config:
        parser.error('int8 needs --config, for the images to calibrate with')
    if args.calibration < 1:
        parser.error(f'--calibration must be at least 1, got {args.calibration}')
    try:
        re.compile(args.keep or '')
    except re.error as error:
        parser.error(f'--keep must be a regular expression, got {args.keep!r}: {error}')
    return args


def calibration_images(cfg: Config, graph: OnnxGraph, count: int) -> List[Dict[str, np.ndarray]]:
    """Inputs of a graph for single training images, spread evenly over the data set.

    Args:
        cfg: Config of the graph.
        graph: The graph, which must take images.
        count: Number of images, or all if there are fewer.

    Raises:
        UserError: There are none, or the graph does not take images.
    """
    if 'train_dataloader' not in cfg:
        raise UserError(f'{cfg.filename} has no train_dataloader to take calibration images from')
    settings = copy.deepcopy(cfg.train_dataloader.dataset)
    while 'dataset' in settings:
        settings = settings['dataset']
    settings['pipeline'] = test_dataset(cfg)['pipeline']
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        try:
            dataset = DATASETS.build(settings)
        except Exception as error:
            problem = explain(settings, error)
            if problem is None:
                raise
            raise problem from error
    check_dataset(dataset)
    raw = graph.metadata['preprocess'] == 'in'
    prepare = Preprocess(normalisation_of(cfg))
    feeds = []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int):
        item = dataset[index]
        if item['inputs'].dim() != 3:
            raise UserError(f'{cfg.filename} reads sequences; images alone are calibrated on')
        images = item['inputs'].permute(1, 2, 0)[None].contiguous()
        feed = {'images': (images if raw else prepare(images)).numpy()}
        if not raw and graph.metadata['task'] == 'detection':
            feed['sizes'] = np.array([item['data_samples'].img_shape[:2]], np.int64)
        feeds.append(feed)
    return feeds


def to_int8(path: str, out: str, feeds: List[Dict[str, np.ndarray]],
            keep: Optional[str] = None) -> None:
    """Quantise a file's convolutions and linear layers, with one scale per output channel.

    Args:
        path, out: Files to read and to write.
        feeds: Inputs from which the ranges of activations are taken.
        keep: Regular expression; nodes with a match in their name are not quantised.

    Raises:
        UserError: No name matches, or activations are not finite.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self):
            return next(self.feeds, None)

    if DOMAIN in operator_sets(path):
        raise UserError(f'{path} was exported with --own-operators, which the quantisation of '
                        'onnxruntime does not take; export it without')
    with tempfile.TemporaryDirectory() as folder:
        prepared = os.path.join(folder, 'prepared.onnx')
        # Folds norms into convolutions; in a detector shapes may depend on values.
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        kept = [node.name for node in onnx.load(prepared).graph.node
                if keep and node.op_type in _INT8 and re.search(keep, node.name)]
        if keep and not kept:
            raise UserError(f'no convolution or linear layer of {path} has a name that matches '
                            f'--keep {keep}')
        try:
            quantize_static(prepared, out, Images(), op_types_to_quantize=list(_INT8),
                            nodes_to_exclude=kept, per_channel=True)
        except AssertionError as error:
            raise UserError(f'{path} cannot be quantised: on the calibration images an activation '
                            f'is not finite ({error})') from error


def stays_float32(name: str, detector: bool) -> bool:
    """Whether a node must stay float32, because it is not part of the network's layers.

    In float16 coordinates above 1024 are rounded to whole pixels, and the offsets that separate
    boxes of different classes for NonMaxSuppression exceed its range: of a detector only the
    layers of its modules are converted.

    Args:
        name: Name of the node, with the path of its module.
        detector: Whether the network is a detector.
    """
    if name.startswith('/preprocess/'):
        return True
    return detector and not re.match('/detections/[^/]+/', name)


def join_casts(graph) -> None:
    """Tidy up the casts that the conversion leaves between nodes that stay float32.

    It casts a tensor again for each of its readers, under the same name, and passes the output of
    one such node to another through float16.

    Args:
        graph (onnx.GraphProto): Changed in place.
    """
    import onnx
    nodes = {tuple(node.output): node for node in graph.node}
    sources = {node.output[0]: node.input[0] for node in nodes.values()
               if node.op_type == 'Cast' and node.input[0] == f'{node.output[0]}_cast_to_fp16'}
    for node in nodes.values():
        if (node.op_type == 'Cast' and node.input[0] in sources
                and node.attribute[0].i == onnx.TensorProto.FLOAT):
            node.input[0] = sources[node.input[0]]
            node.op_type = 'Identity'
            del node.attribute[:]
    del graph.node[:]
    graph.node.extend(nodes.values())


def to_fp16(path: str, out: str, detector: bool = False) -> None:
    """Convert a file's weights and arithmetic to float16, but not its inputs and outputs.

    Args:
        path, out: Files to read and to write.
        detector: Whether to convert only the layers; see :func:`stays_float32`.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    model = onnx.load(path)
    kept = [node.name for node in model.graph.node if stays_float32(node.name, detector)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # It warns about every weight too small for float16.
        model = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    join_casts(model.graph)
    onnx.save(model, out)


def keep_metadata(path: str, out: str) -> None:
    """Copy the metadata of one file into another."""
    import onnx
    model = onnx.load(out)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(path, load_external_data=False).metadata_props)
    onnx.save(model, out)


def main() -> None:
    """Command line entry point."""
    args = parse_args()
    args.launcher, args.work_dir, args.local_rank = 'none', None, 0
    graph = OnnxGraph(args.model, args.library)
    required('onnx')
    out = args.out or f'{Path(args.model).with_suffix("")}_{"fp16" if args.fp16 else "int8"}.onnx'
    prepare_output(out)
    if args.fp16:
        to_fp16(args.model, out, graph.metadata['task'] == 'detection')
    else:
        cfg = load_config(args)
        if graph.metadata['config'] != Path(cfg.filename).name:
            raise UserError(f'{args.model} was exported from {graph.metadata["config"]}, not from '
                            f'{args.config}')
        to_int8(args.model, out, calibration_images(cfg, graph, args.calibration),
                args.keep)
    keep_metadata(args.model, out)
    OnnxGraph(out, args.library)
    before, after = (os.path.getsize(name) / 2**20 for name in (args.model, out))
    print(f'{out}: {after:.1f} MiB, {before:.1f} before')


if __name__ == '__main__':
    sys.exit(run(main))
