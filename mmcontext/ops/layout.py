"""Memory layouts of maps [B, C, H, W]; ``csrc/layout.h`` has the same rules."""
import torch
from torch import Tensor


def lies_by_pixel(x: Tensor) -> bool:
    """Whether the pixels of a map lie one after another, each with all of its channels: what
    kernels that walk by pixels can read."""
    return x.is_contiguous(memory_format=torch.channels_last)


def is_channels_last(x: Tensor) -> bool:
    """Whether a map's layout is channels-last.

    A map of one channel or of one pixel is contiguous and channels-last at once: it counts as
    contiguous.
    """
    return not x.is_contiguous() and lies_by_pixel(x)


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout of a map, which what is made from it gets too."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
