"""Export networks to ONNX and compare them with torch on photographs, as a table.

    python tools/benchmarks/export_table.py --images a.jpg b.jpg --out export.jsonl [CONFIG ...]
    python tools/benchmarks/export_table.py --out export.jsonl --table

Weights are untrained: norms get the statistics of the photographs, the last norms of residual
branches a weight of 0.05, and the last layers of detectors the spread of trained ones, so that
there are detections to compare. The graphs take raw images and are traced for images of every
size. A photograph is compared at two sizes, the first one alone and all of them as a batch. What
--out holds already is not done again.
"""
import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Iterator, List, Tuple
from unittest.mock import patch

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops.nms import NMSop
from mmengine.config import Config

from mmcontext.deployment.checking import (
    Agreement,
    compare,
    image_inputs,
    match_all,
    predicted,
    samples_of,
)
from mmcontext.deployment.graph import Graph, build_graph, export
from mmcontext.deployment.runtime import OnnxGraph
from mmcontext.deployment.untrained import make_decided

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# Height and width of the photographs, and of those that the norms see.
SIZES, SEEN = ((320, 427), (448, 336)), (192, 256)
NETWORKS = {
    'coconv': ['coresnet50'], 'pyconv': ['pyconvresnet50', 'pyconvhgresnet50'],
    'cotnet': ['cotnet50', 'cotnext50', 'se_cotnetd50'], 'rednet': ['rednet50'],
    'cednet': ['cednet50'], 'ccnn': ['ckresnet50'],
}
# In the order in which they are done.
FORMS = [
    '{}_imagenet', 'mask_rcnn_{}_neck_fpn_head_1x_coco', 'mask_rcnn_{}_fpn_1x_coco',
    'cascade_mask_rcnn_{}_fpn_1x_coco', 'retinanet_{}_neck_fpn_1x_coco',
    'upernet_{}_512x1024_80k_cityscapes', 'fpn_{}_neck_512x1024_80k_cityscapes',
    'pyconvsegnet_{}_ade20k', 'faster_rcnn_{}_neck_fpn_1x_coco', 'retinanet_{}_fpn_1x_coco',
    'cascade_rcnn_{}_fpn_1x_coco', 'fpn_{}_512x1024_80k_cityscapes',
    'mask_rcnn_{}_neck_fpn_1x_coco', 'faster_rcnn_{}_fpn_1x_coco',
    'faster_rcnn_{}_neck_fpn_head_1x_coco',
]
# Inputs of the networks that read no photographs, without the batch.
SHAPES = {'ccnn_4_140_smnist': (1, 784), 'ccnn_4_140_speech_mfcc': (20, 161),
          'ccnn_4_140_lra_image': (1, 1024), 'ccnn_4_140_scifar10': (3, 1024),
          'ccnn_4_140_modelnet40': (6, 512), 'ccnn_4_140_cifar10': (3, 32, 32),
          'ccnn_4_140_stl10': (3, 96, 96)}


def default_configs() -> Iterator[Path]:
    """One network of every family, in every task."""
    for form in FORMS:
        for family, names in NETWORKS.items():
            for name in names:
                path = CONFIGS / family / f'{form.format(name)}.py'
                if path.is_file():
                    yield path
        if form == FORMS[0]:
            yield from (CONFIGS / 'ccnn' / f'{name}.py' for name in SHAPES)


def photographs(paths: List[str], size: Tuple[int, int]) -> np.ndarray:
    """uint8 [B, H, W, 3]."""
    return np.stack([cv2.resize(cv2.imread(path), size[::-1]) for path in paths])


def sequences(paths: List[str], shape: Tuple[int, int]) -> torch.Tensor:
    """The brightness of photographs in the order of reading, [B, channels, length]."""
    pixels = photographs(paths, (shape[0], shape[1])).mean(axis=3)
    return torch.from_numpy(pixels / 127.5 - 1).float()


def inputs_of(graph: Graph, paths: List[str]) -> List[Tuple[torch.Tensor, ...]]:
    """What the graph is compared on."""
    shape = tuple(graph.example[0].shape[1:])
    if graph.metadata['preprocess'] == 'out':
        return [(sequences(paths, shape), )]
    small = max(shape[:2]) < 100  # CIFAR and its like
    return [image_inputs(graph, photographs(chosen, shape[:2] if small else size))
            for chosen, size in zip((paths[:1], paths), SIZES)]


def measure(path: Path, images: List[str], folder: str) -> dict:
    """A row of the table."""
    torch.manual_seed(0)
    shape = SHAPES.get(path.stem)
    raw = shape is None or shape[0] == 3 and len(shape) == 3
    cfg = Config.fromfile(path)
    if 'CCNN' not in cfg.model.backbone.type:
        # All branches start alike, and make_decided sets them to what keeps errors small.
        cfg.model.backbone.zero_init_residual = True
    graph = build_graph(cfg, shape=shape, preprocess='in' if raw else 'out',
                        dynamic_size=True)
    seen = (image_inputs(graph, photographs(images, SEEN)) if raw and shape is None else
            inputs_of(graph, images)[-1])
    make_decided(graph.model, lambda: graph.module(*seen))
    # (Noise may overflow untrained dynamic kernels.)
    graph = graph._replace(example=seen)
    file = str(Path(folder) / 'model.onnx')
    start = time.perf_counter()
    export(graph, file)
    row = dict(config=path.stem, task=graph.metadata['task'],
               seconds=round(time.perf_counter() - start, 1),
               mib=round(Path(file).stat().st_size / 2**20, 1), nodes=count_nodes(file))
    onnx = OnnxGraph(file)
    inputs = inputs_of(graph, images)
    cases = [compare(graph, onnx, given) for given in inputs]
    row.update(equal=[bool(case) for case in cases], cases=[case._asdict() for case in cases])
    if row['task'] == 'detection' and not all(cases):
        row['rounding'] = [rounding(graph, given)._asdict() for given in inputs]
    return row


def rounding(graph: Graph, inputs: Tuple[torch.Tensor, ...]) -> Agreement:
    """How far a detector in float32 is from itself in float64, both in torch: a difference of the
    file that is no larger tells of the network."""
    samples, images = samples_of(graph, inputs)
    found = predicted(graph.model, samples, images)
    suppress, sample = NMSop.apply, F.grid_sample  # mmcv's and mmdet's for float32 alone
    with patch.object(NMSop, 'apply', lambda boxes, scores, *options: suppress(
            boxes.float(), scores.float(), *options)), \
            patch.object(F, 'grid_sample', lambda masks, grid, **options: sample(
                masks, grid.to(masks.dtype), **options)):
        exact = predicted(copy.deepcopy(graph.model).double(), samples, images)
    return match_all(exact, found)


def count_nodes(path: str) -> int:
    """Nodes of a graph, constants aside; all of them of standard operators."""
    import onnx
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} <= {'', 'ai.onnx'}
    return sum(node.op_type != 'Constant' for node in graph.node)


def print_table(rows: List[dict]) -> None:
    """The rows in Markdown, in alphabetical order."""
    print('| config | nodes | MiB | compared | largest difference | of torch itself |\n'
          '|---|--:|--:|---|---|---|')
    for row in sorted(rows, key=lambda row: row['config']):
        if 'error' in row:
            print(f'| {row["config"]} | - | - | - | {row["error"]} | |')
            continue
        cases = row['cases']
        if cases[0]['logits'] is not None:
            compared = 'logits'
            text = ', '.join(f'{case["logits"]:.0e}' for case in cases)
        else:
            compared = ' + '.join(str(case['found']) for case in cases) + ' detections'
            text = _differences(cases)
        print(f'| {row["config"]} | {row["nodes"]} | {row["mib"]} | {compared} | {text} | '
              f'{_differences(row.get("rounding", []))} |')


def _differences(cases: List[dict]) -> str:
    return '; '.join(
        f'{case["box"]:.0e} px, {case["score"]:.0e}'
        + ('' if case['mask'] is None else f', {case["mask"]:.4f}') for case in cases)


def main() -> int:
    """Command line entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', type=Path, help='default: the zoo, 50 layers deep')
    parser.add_argument('--images', nargs='+', help='photographs')
    parser.add_argument('--out', required=True, type=Path, help='file for the rows (JSON lines)')
    parser.add_argument('--table', action='store_true', help='print what there is')
    args = parser.parse_args()
    rows = []
    if args.out.is_file():
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    if args.table:
        print_table(rows)
        return 0
    if not args.images:
        parser.error('give --images')
    warnings.simplefilter('ignore')
    done = {row['config'] for row in rows}
    for path in args.configs or default_configs():
        if path.stem in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = measure(path, args.images, folder)
            except Exception as error:  # A defect of one network leaves the others to be done.
                row = dict(config=path.stem, error=f'{type(error).__name__}: {error}')
        with args.out.open('a') as file:
            file.write(json.dumps(row) + '\n')
        print(row, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
