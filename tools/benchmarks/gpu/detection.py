"""(f) Mask R-CNN and a segmentor under AMP, with alternating image sizes, against ResNet-50."""
import argparse
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData

from gpu.backends import compilations
from gpu.record import Record
from gpu.timing import Device

_CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
DETECTORS = {
    'Mask R-CNN ResNet-50': '_base_/detectors/mask_rcnn_syncbn_4conv1fc_1x_coco.py',
    'Mask R-CNN CedNet-50, operator neck and heads':
        'cednet/mask_rcnn_cednet50_neck_fpn_head_1x_coco.py',
    'Mask R-CNN CoTNet-50': 'cotnet/mask_rcnn_cotnet50_fpn_1x_coco.py',
}
SEGMENTORS = {
    'Semantic FPN ResNet-50': 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    'Semantic FPN CedNet-50': 'cednet/fpn_cednet50_512x1024_80k_cityscapes.py',
}
# Padded sizes as they occur in multi-scale training.
_SIZES = ((800, 1216), (800, 1088), (640, 1024), (768, 1344), (736, 1120))
_CROPS = ((512, 1024), (512, 512), (768, 768), (480, 960), (640, 1280))
# What makes a detector small enough for a dry run.
_NARROW = dict(
    neck=dict(in_channels=[128, 256, 512, 1024], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, conv_out_channels=16,
                       fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=20, max_per_img=8), rcnn=dict(sampler=dict(num=8))))

Batch = Dict[str, list]


def _config(path: str) -> Config:
    return Config.fromfile(path if '::' in path else str(_CONFIGS / path))


def _detector(path: str, tiny: bool) -> torch.nn.Module:
    from mmdet.registry import MODELS
    cfg = _config(path)
    cfg.model.backbone.init_cfg = None
    if tiny:
        cfg.merge_from_dict(dict(model=_NARROW))
        cfg.model.backbone.update(depth=26, base_channels=32)
    return MODELS.build(cfg.model)


def _segmentor(path: str, tiny: bool) -> torch.nn.Module:
    from mmseg.registry import MODELS
    cfg = _config(path)
    cfg.model.update(pretrained=None)
    cfg.model.backbone.init_cfg = None
    # The sizes vary, and the images already have their final size.
    cfg.model.data_preprocessor.update(size=None, size_divisor=32)
    if tiny:
        cfg.merge_from_dict(dict(model=dict(
            backbone=dict(depth=26, base_channels=32),
            neck=dict(in_channels=[128, 256, 512, 1024], out_channels=16),
            decode_head=dict(in_channels=[16] * 4, channels=16))))
    return MODELS.build(cfg.model)


def _detection_batch(height: int, width: int) -> Batch:
    """Two images with eight objects each."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    rng = np.random.default_rng(height + width)
    inputs, samples = [], []
    for _ in range(2):
        corners = rng.uniform(0, 0.6, (8, 2)) * (width, height)
        boxes = np.concatenate((corners, corners + 0.3 * np.array((width, height))), 1)
        masks = np.zeros((8, height, width), dtype=np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width), scale_factor=(1., 1.)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float), labels=torch.arange(8),
            masks=BitmapMasks(masks, height, width))
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def _segmentation_batch(height: int, width: int) -> Batch:
    """Two images with random labels."""
    from mmseg.structures import SegDataSample
    samples = [SegDataSample(
        metainfo=dict(img_shape=(height, width), ori_shape=(height, width)),
        gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, height, width)))) for _ in range(2)]
    return dict(inputs=[torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
                        for _ in range(2)], data_samples=samples)


def _amp(model: torch.nn.Module, device: str) -> AmpOptimWrapper:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    if device == 'cuda':
        return AmpOptimWrapper(dtype='float16', loss_scale='dynamic', optimizer=optimizer)
    from mmengine.optim import OptimWrapper  # AMP's scaler needs an accelerator
    return OptimWrapper(optimizer)


def time_model(record: Record, clocks: Device, name: str, model: torch.nn.Module,
               batches: List[Tuple[tuple, Batch]], rounds: int) -> None:
    """Seconds of the first step at every size, then milliseconds of steps with all alternating."""
    model = revert_sync_batchnorm(model).to(clocks.name).train()
    wrapper = _amp(model, clocks.name)

    def seconds(batch: Batch) -> float:
        clocks.synchronize()
        start = time.perf_counter()
        model.train_step(batch, wrapper)
        clocks.synchronize()
        return time.perf_counter() - start

    first = [seconds(batches[0][1])]
    compiled = compilations()
    first += [seconds(batch) for _, batch in batches[1:]]
    times = [[seconds(batch) for _, batch in batches] for _ in range(rounds)]
    steady = [1e3 * statistics.median(column) for column in zip(*times)]
    peak = clocks.peak_mib(lambda: seconds(batches[0][1]), whole=True)
    later = None if compiled is None else compilations() - compiled
    for (size, _), new, ms in zip(batches, first, steady):
        record.row('detection', model=name, size=size, first_s=round(new, 3), ms=round(ms, 1),
                   peak_mib=round(peak), compiled_for_new_sizes=later)


def _all(record: Record, options: argparse.Namespace, models: Dict[str, str], scope: str,
         build: Callable, make_batch: Callable, sizes: tuple) -> None:
    init_default_scope(scope)
    clocks = Device(options.device)
    tiny = options.dry_run
    batches = [(size, make_batch(*size)) for size in (((64, 96), (64, 64)) if tiny else sizes)]
    for name, path in (list(models.items())[1:2] if tiny else models.items()):
        with record.attempt(name):
            torch.manual_seed(0)
            time_model(record, clocks, name, build(path, tiny), batches, 1 if tiny else 5)
        if clocks.on_gpu:
            torch.cuda.empty_cache()


def main(record: Record, options: argparse.Namespace) -> None:
    """Detectors, batch 2."""
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    _all(record, options, DETECTORS, 'mmdet', _detector, _detection_batch, _SIZES)


def segmentor(record: Record, options: argparse.Namespace) -> None:
    """Segmentors, batch 2."""
    from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    _all(record, options, SEGMENTORS, 'mmseg', _segmentor, _segmentation_batch, _CROPS)
