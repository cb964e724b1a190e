"""Label checks shared by the segmentation heads."""
from typing import Optional, Sequence

import torch
from torch import Tensor


def _origin(sample) -> str:
    return repr(sample.metainfo.get('img_path', '<no img_path>'))


def stack_labels(data_samples: Sequence, num_classes: int,
                 ignore_index: Optional[int]) -> Tensor:
    """Stack the label maps of a batch after checking their values.

    In torch, a class index outside the head's range gives "Target 19 is out
    of bounds" on a CPU and an asynchronous device-side assert on a GPU; here
    the message names the image and the possible fixes.

    Args:
        data_samples (Sequence[SegDataSample]): The samples of the batch, each
            with ``gt_sem_seg`` of shape [1, H, W].
        num_classes (int): Number of classes of the head. Binary heads
            (1 class) accept labels 0 and 1.
        ignore_index (int | None): Label that means "no class".

    Returns:
        Tensor: Labels of shape [B, 1, H, W].

    Raises:
        ValueError: If a sample has no label map, or a label is neither a
            class index nor ``ignore_index``.
    """
    for sample in data_samples:
        if 'gt_sem_seg' not in sample:
            raise ValueError(
                f'the sample of image {_origin(sample)} has no gt_sem_seg: '
                'the loss needs a label map, so the dataset must list one and '
                'the pipeline must have LoadAnnotations')
    labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
    wrong = (labels < 0) | (labels >= max(num_classes, 2))
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        where = wrong.flatten(1).any(1).nonzero()[0].item()
        found = labels[where][wrong[where]].unique().tolist()
        raise ValueError(
            f'the label map of image {_origin(data_samples[where])} holds '
            f'{found[:8]}, expected class indices 0 to '
            f'{max(num_classes, 2) - 1} (num_classes={num_classes}) or '
            f'ignore_index={ignore_index}: check num_classes and the '
            "dataset's classes and reduce_zero_label")
    return labels
