"""Continuous convolutions that learn the size of their kernel."""
import itertools
import math
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from mmcontext.layers._kernel_state import has_values
from mmcontext.layers.ckconv import CKConvNd
from mmcontext.layers.continuous_kernel import RUN_FIRST, ContinuousKernel, Window
from mmcontext.ops.tracing import in_torch_func, is_capturing, out_of_graphs
from mmcontext.registry import MODELS

# The centres of the kernel network's filters are drawn from a box this many initial sigmas wide.
_INIT_BOX_SIGMAS = 1.667
# Keeps the mask finite when a sigma passes through zero.
_EPS = 1e-8


def _checked(mask_cfg: Optional[dict]) -> dict:
    """``mask_cfg`` with the defaults filled in."""
    mask = dict(init=0.075, threshold=0.1, learn_mean=False, crop=True)
    unknown = set(mask_cfg or {}) - set(mask)
    if unknown:
        raise ValueError(f'mask_cfg knows {", ".join(mask)}, got {sorted(unknown)}')
    mask.update(mask_cfg or {})
    if not mask['init'] > 0 or not 0 < mask['threshold'] < 1:
        raise ValueError('mask_cfg must have init > 0 and 0 < threshold < 1, got '
                         f'{mask["init"]!r} and {mask["threshold"]!r}')
    return mask


class MaskedKernel(ContinuousKernel):
    """A continuous kernel times exp(-0.5 sum_d ((x_d - mean_d) / sigma_d)^2).

    Taps outside the box in which the mask can exceed its threshold are not in the window. When
    values cannot be read (in an export, and while a CUDA graph is being captured), the window is
    that of the last call.

    Args:
        mask_cfg (dict, optional): See :class:`FlexConvNd`.
        Others: See :class:`ContinuousKernel`.
    """

    def __init__(self, *args, kernel_cfg: dict, mask_cfg: Optional[dict] = None,
                 **kwargs) -> None:
        mask = _checked(mask_cfg)
        kernel_cfg = dict(init_box=_INIT_BOX_SIGMAS * mask['init'], **kernel_cfg)
        super().__init__(*args, kernel_cfg=kernel_cfg, **kwargs)
        self.crop = mask['crop']
        self.mask_width = nn.Parameter(torch.full((self.dim, ), float(mask['init'])))
        mean = torch.full((self.dim, ), float(self.causal))
        if mask['learn_mean']:
            self.mask_mean = nn.Parameter(mean)
        else:
            self.register_buffer('mask_mean', mean)
        self.register_buffer('mask_threshold', torch.full((1, ), float(mask['threshold'])))

    @property
    def crop(self) -> bool:
        """Whether taps are left out."""
        return self._crops

    @crop.setter
    def crop(self, value: bool) -> None:
        self._crops = value
        self._known_window = None
        self._kept.clear()

    def inputs(self) -> List[Tensor]:
        """Every tensor that the sampled kernel is a function of."""
        return [*super().inputs(), self.mask_width, self.mask_mean, self.mask_threshold]

    def _weigh(self, values: Tensor, positions: Tensor) -> Tensor:
        mean, width = self.mask_mean.to(values.dtype), self.mask_width.to(values.dtype)
        exponent = ((positions - mean).square() / (width.square() + _EPS)).sum(1)
        return values * torch.exp(-0.5 * exponent)

    def window(self) -> Window:
        """First and last tap (exclusive) that are sampled, per axis."""
        whole = super().window()
        if not self.crop or self.mask_width.device.type == 'meta':
            return whole
        if not has_values(self.mask_width) or is_capturing(self.mask_width):
            if self._known_window is None:
                raise RuntimeError(RUN_FIRST)
            return self._known_window
        return self._cropped()

    @out_of_graphs
    def _cropped(self) -> Window:
        """The window of the current mask; reads values, so it cannot be part of a graph."""
        return self._crop(_read([self])[0])

    def _crop(self, mask: List[float]) -> Window:
        """What the mask leaves of the whole kernel."""
        means, widths, threshold = mask[:self.dim], mask[self.dim:-1], mask[-1]
        reach = math.sqrt(-2 * math.log(threshold))
        self._known_window = tuple(
            [self._axis_window(taps, length, mean, abs(width) * reach)
             for taps, length, mean, width in zip(self.taps(), self._length, means, widths)])
        return self._known_window

    def _axis_window(self, taps: int, length: int, mean: float, radius: float) -> tuple:
        """Taps within ``radius`` of ``mean``; one more in front when causal."""
        if taps == 1:
            return 0, 1
        step = 2 / (length - 1) / self._resolution
        if self.causal:
            # Position i is 1 - (taps - 1 - i) step.
            first = math.floor((mean - radius - 1) / step) + taps - 1
            return min(max(first, 0), taps - 1), taps
        # Symmetric, up to the farther edge of the mask, so that the kernel stays centred.
        edge = abs(mean) + radius
        if edge >= 1:
            return 0, taps
        middle = taps // 2
        reached = math.ceil(edge / step + 1e-8)
        return max(middle - reached + 1, 0), min(middle + reached, taps)


@torch.no_grad()
def _read(kernels: Sequence[MaskedKernel]) -> List[List[float]]:
    """Mean, sigma and threshold of the masks; synchronises with a GPU, once for all of them."""
    masks = [(kernel.mask_mean, kernel.mask_width, kernel.mask_threshold) for kernel in kernels]
    together = torch.cat([tensor for mask in masks for tensor in mask])
    # (tolist fails in torch.func before torch 2.6.)
    values = [value.item() for value in together] if in_torch_func() else together.tolist()
    ends = list(itertools.accumulate([2 * kernel.dim + 1 for kernel in kernels]))
    return [values[start:end] for start, end in zip([0, *ends], ends)]


def refresh_windows(kernels: Sequence[ContinuousKernel]) -> Tuple[Optional[Window], ...]:
    """Recompute the windows, which a CUDA graph captured next will contain.

    Args:
        kernels: On one device.

    Returns:
        One window each; None if no input has been seen yet.
    """
    masked = [kernel for kernel in kernels
              if isinstance(kernel, MaskedKernel) and kernel.crop and kernel.length]
    windows = {id(kernel): kernel._crop(values)
               for kernel, values in zip(masked, _read(masked) if masked else ())}
    return tuple([windows.get(id(kernel)) or (kernel.window() if kernel.length else None)
                  for kernel in kernels])


class FlexConvNd(CKConvNd):
    """Continuous kernel convolution under a learned Gaussian mask; base of the concrete classes.

    The kernel is multiplied by exp(-0.5 sum_d ((x_d - mean_d) / sigma_d)^2) with a learned sigma
    per axis, and taps outside the box in which the mask can exceed a threshold are not sampled at
    all: a kernel is as small as the data allow (FlexConv, arXiv 2110.08059).

    Use the concrete classes: ``FlexConv1d`` .. ``3d`` and ``SeparableFlexConv1d`` .. ``3d``.

    Args:
        mask_cfg (dict, optional): ``init`` (initial sigma, default 0.075; the kernel spans
            [-1, 1]), ``threshold`` (default 0.1), ``learn_mean`` (default False) and ``crop``
            (whether to leave taps out, default True). The mean is 0, or 1 (the newest position)
            on every axis of a causal kernel. 2.1 times ``init``, where the mask falls to its
            threshold, should reach the taps next to the middle one, 2 / (kernel_size - 1) away,
            because a MAGNet starts at zero in the middle and would not learn otherwise: 0.075
            does from 15 taps on, 0.3 from 5 on.
        Others: See :class:`mmcontext.layers.ckconv.CKConvNd`.

    The parameter is called ``mask_width``; to give it its own learning rate, set
    ``paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1)))``.
    """

    def __init__(self, *args, mask_cfg: Optional[dict] = None, **kwargs) -> None:
        self._mask_cfg = mask_cfg
        super().__init__(*args, **kwargs)

    def _build_kernel(self, **arguments) -> MaskedKernel:
        return MaskedKernel(mask_cfg=self._mask_cfg, **arguments)

    @staticmethod
    def _init_mixer(weight: Tensor) -> None:
        nn.init.kaiming_normal_(weight)

    @property
    def mask_width(self) -> Tensor:
        """Sigma of the mask per axis, in units of half a kernel."""
        return self.kernel.mask_width

    @property
    def mask_mean(self) -> Tensor:
        """Centre of the mask per axis."""
        return self.kernel.mask_mean

    @property
    def mask_threshold(self) -> Tensor:
        """Taps at which the mask is below it are left out."""
        return self.kernel.mask_threshold

    @property
    def crop(self) -> bool:
        """Whether taps are left out."""
        return self.kernel.crop

    @crop.setter
    def crop(self, value: bool) -> None:
        self.kernel.crop = value


@MODELS.register_module()
class FlexConv1d(FlexConvNd):
    """Full masked continuous convolution over 1 axis; see :class:`FlexConvNd`."""

    dim = 1
    separable = False


@MODELS.register_module()
class FlexConv2d(FlexConvNd):
    """Full masked continuous convolution over 2 axes; see :class:`FlexConvNd`."""

    dim = 2
    separable = False


@MODELS.register_module()
class FlexConv3d(FlexConvNd):
    """Full masked continuous convolution over 3 axes; see :class:`FlexConvNd`."""

    dim = 3
    separable = False


@MODELS.register_module()
class SeparableFlexConv1d(FlexConvNd):
    """Depth-wise separable masked continuous convolution over 1 axis; see :class:`FlexConvNd`."""

    dim = 1
    separable = True


@MODELS.register_module()
class SeparableFlexConv2d(FlexConvNd):
    """Depth-wise separable masked continuous convolution over 2 axes; see :class:`FlexConvNd`."""

    dim = 2
    separable = True


@MODELS.register_module()
class SeparableFlexConv3d(FlexConvNd):
    """Depth-wise separable masked continuous convolution over 3 axes; see :class:`FlexConvNd`."""

    dim = 3
    separable = True
