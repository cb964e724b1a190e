"""Continuous convolutions that learn the size of their kernel."""
import math
from typing import List, Optional

import torch
import torch.nn as nn
from torch import Tensor

from mmcontext.layers._kernel_state import has_values
from mmcontext.layers.ckconv import RUN_FIRST, CKConvNd, Window, specialise

# Centres of the kernel network's filters are drawn from a box this many initial sigmas wide.
_INIT_BOX_SIGMAS = 1.667
# Keeps the mask finite when a sigma passes through zero.
_EPS = 1e-8


class FlexConvNd(CKConvNd):
    """Continuous kernel convolution under a learned Gaussian mask; base of the concrete classes.

    The kernel is multiplied by exp(-0.5 sum_d ((x_d - mean_d) / sigma_d)^2) with a learned sigma
    per axis, and taps outside the box where the mask may exceed a threshold are not sampled at
    all: a kernel is as small as the data allow (FlexConv, arXiv 2110.08059).

    Use the concrete classes: ``FlexConv1d`` .. ``3d`` and ``SeparableFlexConv1d`` .. ``3d``.

    Args:
        mask_cfg (dict, optional): ``init`` (initial sigma, default 0.075; the kernel spans
            [-1, 1]), ``threshold`` (default 0.1), ``learn_mean`` (default False) and ``crop``
            (whether to leave taps out, default True). The mean is 0, and 1 (the newest position)
            on every axis of a causal kernel. 2.1 ``init`` should reach the taps beside the
            middle one, 2 / (kernel_size - 1) away, because a MAGNet starts at zero in the middle
            and would not learn: 0.075 does from 15 taps on, 0.3 from 5 on.
        Others: See :class:`mmcontext.layers.ckconv.CKConvNd`.

    The parameter is called ``mask_width``; a learning rate of its own is
    ``paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1)))``.
    """

    def __init__(self, *args, mask_cfg: Optional[dict] = None, **kwargs) -> None:
        mask = dict(init=0.075, threshold=0.1, learn_mean=False, crop=True)
        unknown = set(mask_cfg or {}) - set(mask)
        if unknown:
            raise ValueError(f'mask_cfg knows {", ".join(mask)}, got {sorted(unknown)}')
        mask.update(mask_cfg or {})
        if not mask['init'] > 0 or not 0 < mask['threshold'] < 1:
            raise ValueError('mask_cfg must have init > 0 and 0 < threshold < 1, got '
                             f'{mask["init"]!r} and {mask["threshold"]!r}')
        self._init_box = _INIT_BOX_SIGMAS * mask['init']
        super().__init__(*args, **kwargs)
        self.crop = mask['crop']
        self.mask_width = nn.Parameter(torch.full((self.dim, ), float(mask['init'])))
        mean = torch.full((self.dim, ), float(self.causal))
        if mask['learn_mean']:
            self.mask_mean = nn.Parameter(mean)
        else:
            self.register_buffer('mask_mean', mean)
        self.register_buffer('mask_threshold', torch.full((1, ), float(mask['threshold'])))

    @staticmethod
    def _init_mixer(weight: Tensor) -> None:
        nn.init.kaiming_normal_(weight)

    def _kernel_defaults(self) -> dict:
        return dict(init_box=self._init_box)

    def _kernel_inputs(self) -> List[Tensor]:
        return [*super()._kernel_inputs(), self.mask_width, self.mask_mean, self.mask_threshold]

    def _weigh(self, values: Tensor, positions: Tensor) -> Tensor:
        mean, width = self.mask_mean.to(values.dtype), self.mask_width.to(values.dtype)
        exponent = ((positions - mean).square() / (width.square() + _EPS)).sum(1, keepdim=True)
        return values * torch.exp(-0.5 * exponent)

    def _window(self) -> Window:
        whole = super()._window()
        if not self.crop or self.mask_width.device.type == 'meta':
            return whole
        if not has_values(self.mask_width):
            if self._known_window is None:
                raise RuntimeError(RUN_FIRST.format(type(self).__name__))
            return self._known_window
        self._known_window = self._cropped(whole)
        return self._known_window

    @torch.compiler.disable
    def _cropped(self, whole: Window) -> Window:
        """What the mask leaves of ``whole``; reads values, so no graph can hold it."""
        means, widths, (threshold, ) = (
            t.detach().tolist() for t in (self.mask_mean, self.mask_width, self.mask_threshold))
        reach = math.sqrt(-2 * math.log(threshold))
        return tuple(
            self._axis_window(taps, length, mean, abs(width) * reach)
            for (_, taps), length, mean, width in zip(whole, self._length, means, widths))

    def _axis_window(self, taps: int, length: int, mean: float, radius: float) -> tuple:
        """Taps within ``radius`` of ``mean``; one more in front when causal."""
        if taps == 1:
            return 0, 1
        step = 2 / (length - 1) / self.resolution
        if self.causal:
            # Position i is 1 - (taps - 1 - i) step.
            first = math.floor((mean - radius - 1) / step) + taps - 1
            return min(max(first, 0), taps - 1), taps
        # Both sides alike, as far as the farther edge of the mask: the kernel stays centred.
        edge = abs(mean) + radius
        if edge >= 1:
            return 0, taps
        middle = taps // 2
        reached = math.ceil(edge / step + 1e-8)
        return max(middle - reached + 1, 0), min(middle + reached, taps)


(FlexConv1d, FlexConv2d, FlexConv3d, SeparableFlexConv1d, SeparableFlexConv2d,
 SeparableFlexConv3d) = specialise(FlexConvNd, 'FlexConv',
                                   'continuous kernel convolution under a learned Gaussian mask')
