"""Continuous kernels: as functions, as sampled, with their masks, and over a run."""
import os.path as osp
import re
from glob import escape, glob
from typing import List, Tuple

import torch
from mmengine.utils import track_iter_progress
from torch import Tensor

from mmcontext.layers.ckconv import CKConvNd
from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.errors import UserError

_EPOCH = re.compile(r'(?:epoch|iter)_(\d+)\.(?:pth|safetensors)')


def axis_of(values: Tensor, resolution: float, layer: CKConvNd) -> Tensor:
    """Coordinates of the taps along the last axis of a sampled kernel, in units of its half."""
    taps, length = values.shape[-1], layer.train_length.tolist()[-1]
    step = 2 / max(length - 1, 1) / resolution
    if layer.causal:
        return 1 - step * torch.arange(taps - 1, -1, -1)
    return step * torch.arange(-(taps // 2), taps - taps // 2)


@torch.no_grad()
def sample(layer: CKConvNd, resolution: float) -> Tensor:
    """The kernel with that many taps per trained tap, with the values of the trained one.

    Args:
        layer: Must have seen an input, if its size is 'same'.
        resolution: Taps per trained tap.

    Returns:
        [kernels, *taps]; what the mask crops is left out.
    """
    before, layer.resolution = layer.resolution, resolution
    try:
        # The layer divides by it, so that the sum over more taps stays the same.
        kernel = layer.sample_kernel() * resolution**layer.dim
    finally:
        layer.resolution = before
    return kernel.flatten(0, 1)


def checkpoints_of(run: str) -> List[Tuple[int, str]]:
    """Epochs (or iterations) and checkpoints of a run, in order.

    Raises:
        UserError: The folder has none.
    """
    found = []
    for path in glob(osp.join(escape(run), '*')):
        match = _EPOCH.fullmatch(osp.basename(path))
        if match:
            found.append((int(match[1]), path))
    if not found:
        raise UserError(f'{run} holds no checkpoints epoch_N.pth or iter_N.pth')
    return sorted(found)


def mask_widths(run: str) -> Tuple[List[int], Tensor, List[str]]:
    """The widths of all layers' masks in every checkpoint of a run.

    Args:
        run: Folder with checkpoints.

    Returns:
        Epochs; sigma of the mask in units of half a kernel, mean over the axes,
        [checkpoints, layers]; names of the layers.

    Raises:
        UserError: There are no checkpoints, or no masks in them.
    """
    epochs, widths, names = [], [], []
    for epoch, path in track_iter_progress(checkpoints_of(run)):
        state = load_checkpoint_file(path, map_location='cpu').get('state_dict', {})
        names = [key for key in state if key.endswith('mask_width')]
        epochs.append(epoch)
        widths.append([float(state[key].abs().mean()) for key in names])
    if not names:
        raise UserError(f'the checkpoints of {run} have no FlexConv, whose masks could grow')
    return epochs, torch.tensor(widths), [
        re.sub(r'backbone\.|(\.kernel)?\.mask_width$', '', key) for key in names]
