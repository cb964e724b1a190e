"""The network of a config as a module that can be traced, and its ONNX file."""
import contextlib
import inspect
import os
import sys
import warnings
from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor, nn

from mmcontext.deployment.onnx_file import operator_sets, write_metadata
from mmcontext.deployment.onnxruntime_library import DOMAIN
from mmcontext.deployment.operators import exportable
from mmcontext.deployment.preprocess import (
    Preprocess,
    input_size,
    normalisation_of,
    resizing_of,
    test_dataset,
)
from mmcontext.engine.flops import build_model as build_plain
from mmcontext.utils.checkpoint import load_checkpoint_file, misfit
from mmcontext.utils.errors import UserError, first_line, required
from mmcontext.utils.initialise import initialise
from mmcontext.version import __version__

OPSET = 17
# The first opset in which RoiAlign has mmcv's alignment.
DETECTION_OPSET = 16
TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}
# Size of the images with which a graph of variable size is traced.
_TRACED_SIZE = (128, 160)

Axes = Dict[str, Dict[int, str]]


class Graph(NamedTuple):
    """A module to export, with its inputs and outputs.

    Attributes:
        module: From the inputs to a tensor or a tuple of tensors; in eval mode.
        example: Inputs for tracing it, for two images.
        inputs, outputs: Their names, and the names of the axes whose size may vary.
        metadata: Metadata of the file; every value can be written as JSON.
        model: The config's model, which the module runs.
    """
    module: nn.Module
    example: Tuple[Tensor, ...]
    inputs: Axes
    outputs: Axes
    metadata: dict
    model: nn.Module


class _Exported(nn.Module):
    """From the inputs of a graph to its outputs."""

    def __init__(self, model: nn.Module, preprocess: Optional[Preprocess]) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess

    def _prepared(self, images: Tensor) -> Tensor:
        return images if self.preprocess is None else self.preprocess(images)


class Classification(_Exported):
    """Images or sequences to logits [B, classes]."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self._prepared(images), mode='tensor')


class Segmentation(_Exported):
    """Images to logits [B, classes, H, W], or to classes [B, H, W]."""

    def __init__(self, model: nn.Module, preprocess: Optional[Preprocess],
                 argmax: bool = False) -> None:
        super().__init__(model, preprocess)
        self.argmax = argmax

    def forward(self, images: Tensor) -> Tensor:
        x = self._prepared(images)
        logits = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        if not self.argmax:
            return logits
        if logits.shape[1] > 1:
            return logits.argmax(dim=1)
        return (logits.sigmoid() > self.model.decode_head.threshold).long().squeeze(1)


class Detection(_Exported):
    """Images to boxes, scores, labels and masks; see ``detection.Detections``."""

    def __init__(self, model: nn.Module, preprocess: Optional[Preprocess], masks: str) -> None:
        from mmcontext.deployment.detection import Detections
        super().__init__(model, preprocess)
        self.detections = Detections(model, masks)

    def forward(self, images: Tensor, sizes: Optional[Tensor] = None) -> tuple:
        x = self._prepared(images)
        if sizes is not None:
            return self.detections(x, sizes, x.shape[2:])
        size = images.shape[1:3]
        # (In a trace the sides are tensors, and stay variable.)
        sizes = torch.stack([torch.as_tensor(side) for side in size])
        return self.detections(x, sizes.expand(images.shape[0], 2), size)


def build_model(cfg: Config, checkpoint: Optional[str] = None) -> Tuple[nn.Module, dict]:
    """The model of a config with the weights of a checkpoint, in eval mode on the CPU.

    Args:
        cfg: The config.
        checkpoint: File; None for initial weights, without pretrained ones.

    Returns:
        The model, and the checkpoint's information about its data set.

    Raises:
        UserError: The model cannot be built, or the checkpoint is for another one.
    """
    backbone = cfg.model.get('backbone') if isinstance(cfg.model, dict) else None
    if not isinstance(backbone, dict):
        raise UserError(f'the model of {cfg.filename} has no backbone, got {backbone!r}')
    if checkpoint is None:
        cfg.model.pop('pretrained', None)
        backbone.pop('init_cfg', None)
    try:
        model = build_plain(cfg)
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f'the model of {cfg.filename} cannot be built: {first_line(error)}') from error
    if checkpoint is None:
        return initialise(model).eval(), {}
    weights = load_checkpoint_file(checkpoint, map_location='cpu')
    state = {key: value for key, value in weights.get('state_dict', weights).items()
             if isinstance(value, Tensor)}
    auxiliary = {key: value for key, value in model.state_dict().items()
                 if key.startswith('auxiliary_head.')}
    problem = misfit({**auxiliary, **state}, model.state_dict())
    if problem:
        raise UserError(f'checkpoint {checkpoint} does not fit {cfg.filename}: {problem}')
    model.load_state_dict(state, strict=False)
    return model.eval(), (weights.get('meta') or {}).get('dataset_meta') or {}


def _dataset_meta(cfg: Config, known: dict) -> dict:
    """Names and colours of the classes; those of the checkpoint take precedence."""
    dataset = test_dataset(cfg)
    meta = {}
    if dataset:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
            meta = dict(getattr(DATASETS.get(dataset['type']), 'METAINFO', {}))
    meta.update(dataset.get('metainfo') or {})
    meta.update(known)
    return {name: meta[name] for name in ('classes', 'palette') if meta.get(name)}


def build_graph(cfg: Config, checkpoint: Optional[str] = None,
                shape: Optional[Sequence[int]] = None, preprocess: str = 'out',
                dynamic_size: Optional[bool] = None, argmax: bool = False,
                masks: str = 'image') -> Graph:
    """The graph to export for a config.

    Args:
        cfg: Config of a classifier, detector or segmentor.
        checkpoint: File with its weights; None for initial ones.
        shape: Channels and size of the input; None for the config's test size.
        preprocess: 'in' for a graph that takes images as they are read, 'out' for one that takes
            normalised ones. Defaults to 'out'.
        dynamic_size: Whether the image size may vary, as the batch size may; None: only for
            detectors and segmentors.
        argmax: Whether a segmentor returns classes instead of logits. Defaults to False.
        masks: Masks of a detector, of the 'image' or of the 'box'. Defaults to 'image'.

    Raises:
        UserError: The config cannot be exported, or not with these options.
    """
    task = TASKS.get(cfg.get('default_scope'))
    if task is None:
        raise UserError(f'{cfg.filename} has default_scope {cfg.get("default_scope")!r}; configs '
                        f'of {", ".join(TASKS)} can be exported')
    if argmax and task != 'segmentation':
        raise UserError(f'--argmax is for segmentors, and {cfg.filename} is for {task}')
    if masks == 'box' and task != 'detection':
        raise UserError(f'--masks box is for detectors, and {cfg.filename} is for {task}')
    model, known = build_model(cfg, checkpoint)
    if dynamic_size is None:
        dynamic_size = task != 'classification'
    settings, resizing = normalisation_of(cfg), resizing_of(cfg)
    shape = _input_shape(cfg, shape, resizing, settings.divisor if preprocess == 'out' else 1,
                         dynamic_size and task != 'classification')
    metadata = dict(
        mmcontext=__version__, task=task, config=Path(cfg.filename).name, preprocess=preprocess,
        **settings.metadata(), resize=resizing, input_size=None if dynamic_size else shape[1:],
        **_dataset_meta(cfg, known))
    before = Preprocess(settings) if preprocess == 'in' else None
    if before is not None and (len(shape) != 3 or shape[0] != 3):
        raise UserError('--preprocess in takes images of three channels, and the network of '
                        f'{cfg.filename} takes {shape[0]} channels of {len(shape) - 1} axes')
    module = dict(
        classification=lambda: Classification(model, before),
        segmentation=lambda: Segmentation(model, before, argmax),
        detection=lambda: Detection(model, before, masks))[task]()
    inputs, outputs = _axes(module, len(shape) - 1, dynamic_size)
    if task == 'detection' and 'masks' in outputs:
        metadata.update(masks=masks, mask_threshold=model.test_cfg.rcnn.mask_thr_binary)
    return Graph(module.eval(), _example(module, shape), inputs, outputs, metadata, model)


def _input_shape(cfg: Config, given: Optional[Sequence[int]], resizing: Sequence[dict],
                 divisor: int, any_size: bool) -> Tuple[int, ...]:
    """Channels and size to trace with."""
    if given:
        if len(given) not in (2, 3) or min(given) < 1:
            raise UserError('--shape takes channels and length, or channels, height and width, '
                            f'got {list(given)}')
        return tuple(given)
    channels = cfg.model.backbone.get('in_channels', 3)
    size = _TRACED_SIZE if any_size else input_size(resizing)
    if size is None:
        raise UserError(f"the test pipeline of {cfg.filename} does not tell the input's size; "
                        'give it by --shape')
    return (channels, *(-(-side // divisor) * divisor for side in size))


def _axes(module: nn.Module, dim: int, dynamic_size: bool) -> Tuple[Axes, Axes]:
    """Names of inputs and outputs with their variable axes."""
    def named(first: int) -> Dict[int, str]:
        names = ('height', 'width') if dim == 2 else ('length', )
        return {first + i: name for i, name in enumerate(names)} if dynamic_size else {}

    batch = {0: 'batch'}
    inputs = {'images': {**batch, **named(2 if module.preprocess is None else 1)}}
    if isinstance(module, Classification):
        return inputs, {'logits': batch}
    if isinstance(module, Segmentation):
        return inputs, ({'labels': {**batch, **named(1)}} if module.argmax else
                        {'logits': {**batch, **named(2)}})
    if module.preprocess is None:
        inputs['sizes'] = batch
    rows = {**batch, 1: 'boxes'}
    outputs = {'boxes': rows, 'scores': rows, 'labels': rows}
    if module.detections.with_mask:
        outputs['masks'] = {**rows, **(named(2) if module.detections.masks == 'image' else {})}
    return inputs, outputs


def _example(module: nn.Module, shape: Tuple[int, ...]) -> Tuple[Tensor, ...]:
    if module.preprocess is not None:
        return (torch.randint(0, 256, (2, *shape[1:], shape[0]), dtype=torch.uint8), )
    images = torch.randn(2, *shape)
    if isinstance(module, Detection):
        return images, torch.tensor([shape[1:]] * 2)
    return (images, )


def export(graph: Graph, path: str, opset: int = OPSET, own_operators: bool = False) -> None:
    """Write a graph to an ONNX file.

    Args:
        graph: From :func:`build_graph`.
        path: File to write.
        opset: Version of the operator set. Defaults to 17.
        own_operators: Whether the aggregation is one operator, for which onnxruntime needs the
            library written by ``onnxruntime_library.write_library``; otherwise all operators are
            standard ones. Defaults to False.

    Raises:
        UserError: onnx is missing, the network does not run on the example, the graph cannot be
            written in that operator set, or it has operators that are not ONNX's.
    """
    required('onnx')  # torch's exporter imports it.
    if isinstance(graph.module, Detection) and opset < DETECTION_OPSET:
        raise UserError(f'a detector needs opset {DETECTION_OPSET} for its RoiAlign, got {opset}')
    options = {'custom_opsets': {DOMAIN: 1}} if own_operators else {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        # The exporter that every torch since 2.1 has and that needs no additional package.
        options['dynamo'] = False
    with warnings.catch_warnings(), exportable(own_operators), torch.no_grad():
        # The warnings are about shape checks in Python during tracing.
        warnings.simplefilter('ignore')
        try:
            graph.module(*graph.example)  # A continuous kernel may have to be scaled first.
            with _silent():
                torch.onnx.export(
                    graph.module, graph.example, path, input_names=list(graph.inputs),
                    output_names=list(graph.outputs), opset_version=opset,
                    dynamic_axes={**graph.inputs, **graph.outputs}, **options)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f'{graph.metadata["config"]} cannot be exported for an input of '
                f'{tuple(graph.example[0].shape)} to opset {opset}: {first_line(error)}'
            ) from error
    others = operator_sets(path) - {'', 'ai.onnx', *[DOMAIN] * own_operators}
    if others:
        os.remove(path)
        raise UserError(f'{graph.metadata["config"]} has operators that are not in ONNX, but of '
                        f'{", ".join(sorted(others))}')
    write_metadata(path, graph.metadata)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Context without output: on failure the exporter prints a whole graph, from C++."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream, number in zip(streams, (1, 2)):
            stream.flush()
            os.dup2(nowhere, number)
        yield
    finally:
        for stream, number, original in zip(streams, (1, 2), kept):
            stream.flush()
            os.dup2(original, number)
        for number in (nowhere, *kept):
            os.close(number)
