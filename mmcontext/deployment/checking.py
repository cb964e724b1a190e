"""Compare the results of an exported graph with those of the network in torch."""
from typing import NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from mmcontext.deployment.graph import Detection, Graph, Segmentation
from mmcontext.deployment.preprocess import Normalisation, Preprocess
from mmcontext.deployment.runtime import OnnxGraph, instances
from mmcontext.utils.errors import UserError

# Maximum differences: of logits relative to the largest one, of classes as a share of pixels, of
# boxes in pixels and of scores; minimum overlap of masks.
LOGITS, PIXELS, BOX, SCORE, MASK = 1e-4, 1e-4, 0.05, 1e-4, 0.999
# Detections with lower scores are not compared.
MIN_SCORE = 0.05
# Amplitudes of noise, in the order in which they are tried.
_AMPLITUDES = (1., 0.25, 0.06)


class Agreement(NamedTuple):
    """Differences between a graph and torch.

    Attributes:
        logits: Largest difference relative to the largest logit, or for a graph of classes the
            share of pixels with another class; None for detectors.
        found: Detections in torch above ``MIN_SCORE``.
        box, score: Largest differences between a detection and its partner, infinite if there
            is none with the same label; in both directions.
        mask: Smallest overlap of a mask with its partner's, among those that differ by more than
            one pixel, which is a large part of a small mask; None without masks.
    """
    logits: Optional[float] = None
    found: int = 0
    box: float = 0.
    score: float = 0.
    mask: Optional[float] = None

    def __bool__(self) -> bool:
        if self.logits is not None:
            return self.logits <= LOGITS
        return (self.box <= BOX and self.score <= SCORE
                and (self.mask is None or self.mask >= MASK))

    def __str__(self) -> str:
        if self.logits is not None:
            return f'logits differ by {self.logits:.1e}'
        text = (f'{self.found} detections above {MIN_SCORE} differ by {self.box:.1e} px and '
                f'{self.score:.1e} in score')
        return text if self.mask is None else f'{text}, masks overlap by {self.mask:.4f}'


def random_inputs(graph: Graph, batch: int, seed: int = 0,
                  amplitude: float = 1.) -> Tuple[Tensor, ...]:
    """Noise of the example's size, with another batch size.

    Args:
        graph: The graph that it is for.
        batch: Number of images.
        seed: Seed of the noise.
        amplitude: Standard deviation; for raw images the share of the range, around its middle.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *graph.example[0].shape[1:])
    if graph.example[0].dtype == torch.uint8:
        images = torch.randint(0, 256, shape, generator=generator)
        images = ((images - 127.5) * amplitude + 127.5).to(torch.uint8)
    else:
        images = torch.randn(shape, generator=generator) * amplitude
    return (images, *(other[:1].expand(batch, -1).clone() for other in graph.example[1:]))


def finite_inputs(graph: Graph, batch: int) -> Tuple[Tensor, ...]:
    """Noise for which the network stays finite: kernels computed from noise may overflow although
    kernels computed from images do not. For a classifier or segmentor."""
    for amplitude in _AMPLITUDES:
        inputs = random_inputs(graph, batch, amplitude=amplitude)
        with torch.no_grad():
            if graph.module(*inputs).isfinite().all():
                break
    return inputs


def image_inputs(graph: Graph, images: np.ndarray) -> Tuple[Tensor, ...]:
    """The inputs of a graph for images as OpenCV reads them, uint8 [B, H, W, 3]."""
    images = torch.from_numpy(images)
    if graph.metadata['preprocess'] == 'in':
        return (images, )
    x = Preprocess(settings_of(graph.metadata))(images)
    if isinstance(graph.module, Detection):
        return x, torch.tensor([images.shape[1:3]] * len(images))
    return (x, )


def settings_of(metadata: dict) -> Normalisation:
    """The normalisation described by a graph's metadata."""
    return Normalisation(
        tuple(metadata['mean']), tuple(metadata['std']), metadata['channel_order'] == 'rgb',
        metadata['pad_divisor'], metadata['pad_value'])


def compare(graph: Graph, onnx: OnnxGraph, inputs: Tuple[Tensor, ...]) -> Agreement:
    """Run a graph's network in torch, with its own ``predict``, and its file.

    Args:
        graph: The exported graph.
        onnx: The file.
        inputs: See :func:`image_inputs`.

    Raises:
        UserError: The logits are not even finite in torch.
    """
    actual = onnx(*inputs)
    if isinstance(graph.module, Detection):
        samples, images = samples_of(graph, inputs)
        return match_all(predicted(graph.model, samples, images),
                         instances(actual, samples, graph.metadata))
    with torch.no_grad():
        expected = graph.module(*inputs)
    name, = actual
    actual = torch.from_numpy(actual[name])
    if isinstance(graph.module, Segmentation) and graph.module.argmax:
        return Agreement(logits=(actual != expected).float().mean().item())
    if not expected.isfinite().all():
        raise UserError('the logits are not finite in torch already, so that the graph cannot be '
                        'compared; untrained dynamic kernels may overflow, give a checkpoint, '
                        'or --images')
    return Agreement(((actual - expected).abs().max() / expected.abs().max()).item())


def predicted(model: nn.Module, samples: list, images: Tensor) -> list:
    """Detections (InstanceData) of every image in torch.

    Args:
        model: A detector, of any dtype.
        samples, images: See :func:`samples_of`.
    """
    with torch.no_grad():
        return [sample.pred_instances for sample in model.predict(
            images.to(next(model.parameters()).dtype), samples, rescale=True)]


def samples_of(graph: Graph, inputs: Tuple[Tensor, ...]) -> Tuple[list, Tensor]:
    """The samples that a detector's ``predict`` needs for a graph's inputs, and its images."""
    from mmdet.structures import DetDataSample
    images = inputs[0] if graph.module.preprocess is None else graph.module.preprocess(inputs[0])
    sizes = inputs[1].tolist() if len(inputs) > 1 else [inputs[0].shape[1:3]] * len(images)
    return [DetDataSample(metainfo=dict(
        img_shape=tuple(size), ori_shape=tuple(size), scale_factor=(1., 1.),
        pad_shape=tuple(images.shape[2:]), batch_input_shape=tuple(images.shape[2:])))
        for size in sizes], images


def match_all(expected: list, actual: list) -> Agreement:
    """The worst agreement of the images of a batch; see :func:`match`."""
    parts = [match(*pair) for pair in zip(expected, actual)]
    masks = [part.mask for part in parts if part.mask is not None]
    return Agreement(
        None, sum(part.found for part in parts), max(part.box for part in parts),
        max(part.score for part in parts), min(masks) if masks else None)


def match(expected, actual) -> Agreement:
    """Compare the detections of an image.

    Args:
        expected, actual (InstanceData): With ``bboxes``, ``scores``, ``labels`` and optionally
            ``masks``.
    """
    box = score = 0.
    overlap = 1.
    with_masks = 'masks' in expected
    for ones, others in ((expected, actual), (actual, expected)):
        # A score may fall below the limit on only one side.
        limit = MIN_SCORE if ones is expected else MIN_SCORE + SCORE
        for one in (ones.scores > limit).nonzero().flatten().tolist():
            same = (others.labels == ones.labels[one]).nonzero().flatten()
            if not len(same):
                return Agreement(None, int((expected.scores > MIN_SCORE).sum()), float('inf'),
                                 float('inf'), 0. if with_masks else None)
            distance = (others.bboxes[same] - ones.bboxes[one]).abs().amax(dim=1)
            difference = (others.scores[same] - ones.scores[one]).abs()
            best = (distance + difference).argmin()
            box = max(box, distance[best].item())
            score = max(score, difference[best].item())
            # mmdet gives a box without area the mask of a strip of pixels, the graph an empty one.
            if with_masks and (ones.bboxes[one, 2:] > ones.bboxes[one, :2]).all():
                mask, other = ones.masks[one], others.masks[same[best]]
                if (mask ^ other).sum() > 1:
                    overlap = min(overlap, ((mask & other).sum() / (mask | other).sum()).item())
    return Agreement(None, int((expected.scores > MIN_SCORE).sum()), box, score,
                     overlap if with_masks else None)
