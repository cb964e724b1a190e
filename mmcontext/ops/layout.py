"""Memory layouts of maps [B, C, H, W]. Keep in step with ``csrc/layout.h``."""
import torch
from torch import Tensor


def lies_by_pixel(x: Tensor) -> bool:
    """Whether a map is dense channels-last, as the kernels that go pixel by pixel require."""
    return x.is_contiguous(memory_format=torch.channels_last)


def is_channels_last(x: Tensor) -> bool:
    """Whether a map's layout is channels-last.

    A map with one channel or one pixel is both contiguous and channels-last; it counts as
    contiguous.
    """
    return not x.is_contiguous() and lies_by_pixel(x)


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout of a map, which results computed from it share."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
