"""Exported graphs in onnxruntime, alone and instead of a config's network."""
import json
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from mmcontext.deployment.operators import paste_masks
from mmcontext.utils.errors import UserError, first_line, required


class OnnxGraph:
    """A file written by ``export``, in onnxruntime on the CPU.

    Args:
        path: The file.
        library: The library written by ``onnxruntime_library.write_library``, needed for a file
            with this package's own operators; None for others.

    Attributes:
        metadata (dict): Metadata of the file.

    Raises:
        UserError: onnxruntime is missing, the file was not written by ``export``, or it does not
            accept an input.
    """

    def __init__(self, path: str, library: Optional[str] = None) -> None:
        onnxruntime = required('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # It warns about a detector's empty results, and about errors that are raised anyway.
        options.log_severity_level = 4
        try:
            if library:
                # (A bare name is searched for among the system's libraries.)
                options.register_custom_ops_library(str(Path(library).resolve()))
            self._session = onnxruntime.InferenceSession(
                path, options, providers=['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime's errors have no common base class
            hint = '' if library else ' (a file with own operators needs --library)'
            raise UserError(f'{path} cannot be loaded by onnxruntime{hint}: '
                            f'{first_line(error)}') from error
        entries = self._session.get_modelmeta().custom_metadata_map
        try:
            self.metadata = {key: json.loads(entries[key]) for key in _KEYS
                             if key not in _OPTIONAL or key in entries}
        except (KeyError, ValueError) as error:
            raise UserError(f'{path} was not written by export_onnx.py: its metadata does not '
                            'tell what goes in and comes out') from error
        self._path = path
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, *inputs: Tensor) -> Dict[str, np.ndarray]:
        """Outputs by their names."""
        names = [node.name for node in self._session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, inputs)}
        try:
            return dict(zip(self._outputs, self._session.run(None, feed)))
        except Exception as error:
            raise UserError(f'{self._path} does not take an input of {tuple(inputs[0].shape)}: '
                            f'{first_line(error)}') from error


_KEYS = ('mmcontext', 'task', 'config', 'preprocess', 'mean', 'std', 'channel_order',
         'pad_divisor', 'pad_value', 'resize', 'input_size', 'classes', 'palette', 'masks',
         'mask_threshold')
_OPTIONAL = ('classes', 'palette', 'masks', 'mask_threshold')
_NORMALISATION = dict(mean=None, std=None)
_SWAPS = ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr')


def leave_images_raw(cfg: Config) -> None:
    """Switch off everything a config's ``data_preprocessor`` does to images except batching.

    Args:
        cfg: Changed in place.
    """
    for holder in (cfg, cfg.model):
        settings = holder.get('data_preprocessor')
        if settings:
            settings.update(_NORMALISATION)
            settings.update({name: False for name in _SWAPS if name in settings})
            if 'pad_size_divisor' in settings:
                settings['pad_size_divisor'] = 1


def serve(model: nn.Module, graph: OnnxGraph) -> nn.Module:
    """Replace a config's network by a graph; the rest of the model is unchanged.

    Args:
        model: The config's model; changed in place. Its weights do not matter.
        graph: The graph, of the same config. If it takes raw images, the model must too, see
            :func:`leave_images_raw`.

    Returns:
        ``model``.
    """
    raw = graph.metadata['preprocess'] == 'in'
    task = graph.metadata['task']

    def prepared(images: Tensor) -> Tensor:
        return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous() if raw else images

    if task == 'classification':
        model.extract_feat = lambda images, *args, **kwargs: images
        model.head.forward = lambda images: torch.from_numpy(graph(prepared(images))['logits'])
    elif task == 'segmentation':
        model.encode_decode = lambda images, metas: _logits(graph(prepared(images)),
                                                            model.out_channels)
    else:
        model.predict = lambda images, samples, rescale=True: model.add_pred_to_datasample(
            samples, [result for found, batch in _found(graph, images, samples, raw, prepared)
                      for result in instances(found, batch, graph.metadata)])
    return model


def _logits(outputs: Dict[str, np.ndarray], channels: int) -> Tensor:
    if 'logits' in outputs:
        return torch.from_numpy(outputs['logits'])
    labels = torch.from_numpy(outputs['labels'])
    if channels == 1:
        return labels[:, None] * 2. - 1
    return F.one_hot(labels, channels).permute(0, 3, 1, 2).float()


def _found(graph: OnnxGraph, images: Tensor, samples: list, raw: bool, prepared) -> list:
    """Outputs of the graph with their samples."""
    if not raw:
        sizes = torch.tensor([sample.img_shape[:2] for sample in samples])
        return [(graph(images, sizes), samples)]
    # Raw images have no padding.
    results = []
    for image, sample in zip(images, samples):
        height, width = sample.img_shape[:2]
        results.append((graph(prepared(image[None, :, :height, :width])), [sample]))
    return results


def instances(found: Dict[str, np.ndarray], samples: Sequence, metadata: dict) -> List:
    """A detector's outputs in mmdet's form, in pixels of the original images.

    Args:
        found: Outputs of the graph for a batch.
        samples: The batch's data samples, with ``scale_factor``, ``ori_shape`` and ``img_shape``.
        metadata: Metadata of the graph.

    Returns:
        An ``InstanceData`` for every image. Masks of the image's size are resized to the
        original one; masks of boxes are pasted there, as in mmdet.
    """
    from mmengine.structures import InstanceData
    results = []
    for image, sample in enumerate(samples):
        present = found['labels'][image] >= 0
        boxes = torch.from_numpy(found['boxes'][image][present])
        width_scale, height_scale = sample.scale_factor
        result = InstanceData(
            bboxes=boxes / boxes.new_tensor([width_scale, height_scale] * 2),
            scores=torch.from_numpy(found['scores'][image][present]),
            labels=torch.from_numpy(found['labels'][image][present]))
        if 'masks' in found:
            masks = torch.from_numpy(found['masks'][image][present])
            size = sample.ori_shape[:2]
            if metadata['masks'] == 'box':
                masks = paste_masks(masks, result.bboxes, *size) >= metadata['mask_threshold']
            else:
                height, width = sample.img_shape[:2]
                masks = masks[:, :height, :width]
                if tuple(size) != (height, width):
                    masks = F.interpolate(masks[:, None].float(), tuple(size),
                                          mode='bilinear')[:, 0] >= 0.5
            result.masks = masks
        results.append(result)
    return results
