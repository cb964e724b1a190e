"""Convolutions whose kernel is sampled from a network on coordinates."""
import contextlib
import math
from typing import List, Optional, Sequence, Tuple, Type, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mmcontext.layers._kernel_state import (
    divide_weight,
    has_values,
    is_watched,
    same_values,
    tensors_of,
    values_of,
)
from mmcontext.layers._modules import as_one_node, has_global_hooks, is_touched
from mmcontext.ops.arguments import per_axis
from mmcontext.ops.fft_conv import convolve
from mmcontext.ops.tracing import is_compiling, is_symbolic, untraced
from mmcontext.registry import MODELS

KernelSize = Union[str, int, Sequence[int]]
Window = Tuple[Tuple[int, int], ...]

RUN_FIRST = 'run {} once in eval mode before exporting it, which fixes the size of its kernel'
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_ZERO_PAD = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}


def _tap_count(length: int, resolution: float, causal: bool) -> int:
    """Taps along one axis of a kernel that was trained with ``length`` of them."""
    if resolution == 1 or length == 1:
        return length
    if causal:
        return math.floor((length - 1) * resolution + 1e-6) + 1
    return 2 * math.floor((length - 1) / 2 * resolution + 1e-6) + 1


def _axis_positions(length: int, resolution: float, causal: bool) -> Tensor:
    """Coordinates of the taps along one axis.

    They are float32, whatever the layer's dtype: kernels with frequencies in the thousands were
    trained on the rounded coordinates, and the rounding moves their phase.
    """
    options = dict(dtype=torch.float32, device='cpu')
    if length == 1:
        return torch.full((1, ), float(causal), **options)
    if resolution == 1:
        return torch.linspace(-1, 1, length, **options)
    step = 2 / (length - 1) / resolution
    taps = _tap_count(length, resolution, causal)
    if causal:
        return 1 - step * torch.arange(taps - 1, -1, -1, **options)
    return step * torch.arange(-(taps // 2), taps // 2 + 1, **options)


class CKConvNd(nn.Module):
    """Continuous kernel convolution over ``dim`` axes; the base of the concrete classes.

    The kernel is a function on [-1, 1]^dim given by a small network, sampled at as many points
    as are wanted: it can be as long as the input at a fixed number of parameters, and be sampled
    anew for data of another resolution (CKConv, arXiv 2102.02611; CCNN, arXiv 2206.03398).

    Use the concrete classes: ``CKConv1d``, ``CKConv2d``, ``CKConv3d`` (full kernels) and
    ``SeparableCKConv1d`` .. ``3d`` (a depth-wise continuous kernel, then a 1x1 convolution
    ``channel_mixer``). The signature starts like that of ``Conv2d``, so they serve as conv_cfg.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int, optional): Channels of the output. None means ``in_channels``.
        kernel_size (int | Sequence[int] | 'same'): Number of taps. 'same' takes the size of the
            first input (rounded up to odd when centred) and remembers it in the checkpoint.
            Defaults to 'same'.
        stride (int | Sequence[int]): Defaults to 1.
        padding (int | Sequence[int], optional): Zeros on both sides of each axis. None keeps the
            size at stride 1: centred, or in front when causal. Defaults to None.
        dilation (int | Sequence[int]): Distance of the taps. Defaults to 1.
        groups (int): Groups of the full kernel, or of the channel mixer. Defaults to 1.
        bias (bool): Bias of the continuous convolution and of the mixer. Defaults to True.
        kernel_cfg (dict, optional): Kernel network, see ``mmcontext.layers.kernel_nets``.
            Defaults to ``dict(type='MAGNet', hidden_channels=32, num_layers=3, omega_0=100.)``.
        causal (bool): Outputs see no later position on any axis. Defaults to False.
        resolution (float): Taps per tap of the trained kernel: 2 samples it twice as finely,
            for data sampled twice as densely, and rescales it so that outputs keep their size.
            May be set at any time, see :func:`set_resolution`. Defaults to 1.
        method (str, optional): How to convolve, see :func:`mmcontext.ops.convolve`.
            Defaults to None: predicted.
        cache (bool): In eval mode without gradients, sample the kernel once and keep it until
            anything it depends on has changed. Not while the kernel network has hooks, which
            want to run. Defaults to True.
        kernel_size_override (int | Sequence[int] | 'same', optional): Kernel size that wins over
            ``kernel_size``, the padding adapted, for callers that pass their own kernel size
            (conv_cfg). Defaults to None.

    Shape: [B, in_channels, *size] to [B, out_channels, *out].

    Half precision: use autocast, or :func:`freeze_kernels` first. ``.half()`` and ``.bfloat16()``
    round the frequencies of the kernel network, which are in the hundreds, and so its kernels.

    In a graph of ``torch.fx`` the layer is one node.
    """

    dim: int
    separable: bool
    # What ConvModule and the like look up on a convolution.
    transposed = False
    padding_mode = 'zeros'
    _default_kernel = dict(type='MAGNet', hidden_channels=32, num_layers=3, omega_0=100.)

    def __init__(self,
                 in_channels: int,
                 out_channels: Optional[int] = None,
                 kernel_size: KernelSize = 'same',
                 stride: Union[int, Sequence[int]] = 1,
                 padding: Union[int, Sequence[int], None] = None,
                 dilation: Union[int, Sequence[int]] = 1,
                 groups: int = 1,
                 bias: bool = True,
                 kernel_cfg: Optional[dict] = None,
                 causal: bool = False,
                 resolution: float = 1.,
                 method: Optional[str] = None,
                 cache: bool = True,
                 kernel_size_override: Optional[KernelSize] = None) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f'in_channels and out_channels must be at least 1, got '
                             f'{in_channels} and {out_channels}')
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f'groups must divide in_channels {in_channels} and out_channels '
                             f'{out_channels}, got {groups}')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = self._per_axis('stride', stride, 1)
        self.dilation = self._per_axis('dilation', dilation, 1)
        self.output_padding = (0, ) * self.dim
        self.groups = groups
        self.kernel_size = self._check_kernel_size('kernel_size', kernel_size)
        self.padding = None if padding is None else self._per_axis('padding', padding, 0)
        if kernel_size_override is not None:
            self._override_kernel_size(kernel_size_override)
        self.causal = causal
        self.method = method
        self.cache = cache
        self.resolution = resolution

        kernel_channels = (in_channels if self.separable else out_channels * in_channels // groups)
        kernel_cfg = dict(self._default_kernel, **self._kernel_defaults(), **(kernel_cfg or {}))
        # The scope, because the caller's default scope may be that of any library.
        self.kernel_net = MODELS.build(
            dict(_scope_='mmcontext', dim=self.dim, out_channels=kernel_channels, causal=causal,
                 **kernel_cfg))
        # Sampled kernels pass through here, so that a forward hook can get hold of them.
        self.kernel_tap = nn.Identity()
        self.bias = nn.Parameter(
            torch.zeros(in_channels if self.separable else out_channels)) if bias else None
        if self.separable:
            self.channel_mixer = _CONV[self.dim](
                in_channels, out_channels, 1, groups=groups, bias=bias)
            self._init_mixer(self.channel_mixer.weight)
            if bias:
                nn.init.zeros_(self.channel_mixer.bias)
        length = (0, ) * self.dim if self.kernel_size == 'same' else self.kernel_size
        # Floating-point, because averages of networks are taken of their buffers too, and
        # integers would be rounded down and flags refused.
        self.register_buffer('train_length', torch.tensor(length, dtype=torch.float))
        self.register_buffer('initialized', torch.zeros(1))
        self._forget()

    @staticmethod
    def _init_mixer(weight: Tensor) -> None:
        nn.init.kaiming_uniform_(weight, nonlinearity='linear')

    # -- arguments ---------------------------------------------------------------------------

    def _kernel_defaults(self) -> dict:
        """Arguments of the kernel network that the layer knows better than the network."""
        return {}

    def _per_axis(self, name: str, value: Union[int, Sequence[int]], least: int) -> tuple:
        return per_axis(f'{name} of {type(self).__name__}', value, self.dim, least)

    def _check_kernel_size(self, name: str, size: KernelSize) -> Union[str, tuple]:
        if isinstance(size, str):
            if size != 'same':
                raise ValueError(f"{name} must be 'same' or numbers, got {size!r}")
            return size
        return self._per_axis(name, size, 1)

    def _override_kernel_size(self, override: KernelSize) -> None:
        override = self._check_kernel_size('kernel_size_override', override)
        if self.padding is not None and self.kernel_size != 'same':
            spare = [p - d * (k - 1) // 2
                     for p, d, k in zip(self.padding, self.dilation, self.kernel_size)]
            if not any(spare):
                self.padding = None
            elif override == 'same':
                raise ValueError(f"kernel_size_override 'same' needs padding that keeps the size, "
                                 f'got {self.padding}')
            else:
                self.padding = self._per_axis(
                    'padding', [s + d * (k - 1) // 2
                                for s, d, k in zip(spare, self.dilation, override)], 0)
        self.kernel_size = override

    @property
    def resolution(self) -> float:
        return self._resolution

    @resolution.setter
    def resolution(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f'resolution must be positive, got {value!r}')
        self._resolution = float(value)
        self._known_window = None

    # -- state that follows from parameters and buffers ---------------------------------------

    def _forget(self) -> None:
        """Drop everything derived from parameters and buffers."""
        self._length: Optional[Tuple[int, ...]] = None
        self._known_window: Optional[Window] = None
        self._kept: Optional[tuple] = None
        self._positions: Optional[tuple] = None

    def train(self, mode: bool = True) -> 'CKConvNd':
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._kept = self._positions = None
        length = self.train_length
        super()._apply(*args, **kwargs)
        if self.train_length.dtype != length.dtype:  # half precision would round it
            self.train_length = length.to(self.train_length.device)
        return self

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_length': None, '_known_window': None, '_kept': None,
                '_positions': None}

    # -- the kernel --------------------------------------------------------------------------

    @torch.compiler.disable
    @untraced()
    def _first_look(self, size: Sequence[int]) -> None:
        """Fix the kernel's size and rescale the network's output, unless it is done already."""
        seen = tuple(int(n) if self.causal else int(n) | 1 for n in size)
        if self.train_length.device.type == 'meta':
            self._length = seen if self.kernel_size == 'same' else self.kernel_size
            return
        if not has_values(self.train_length):
            raise RuntimeError(RUN_FIRST.format(type(self).__name__))
        length = tuple(round(n) for n in self.train_length.tolist())
        if not all(length):
            length = seen
            with torch.no_grad():
                self.train_length.copy_(torch.tensor(length))
        self._length = length
        if not self.initialized.item():
            # As in Chang et al., ICLR 2020: the output's variance must not grow with the kernel.
            fan_in = math.prod(stop - start for start, stop in self._window())
            if not self.separable:
                fan_in *= self.in_channels // self.groups
            with torch.no_grad():
                divide_weight(self.kernel_net.output_linear, math.sqrt(fan_in))
                self.initialized.fill_(1)

    def _taps(self) -> Tuple[int, ...]:
        """Taps of the whole kernel, per axis."""
        return tuple(_tap_count(n, self.resolution, self.causal) for n in self._length)

    def _window(self) -> Window:
        """First and last tap (exclusive) that are sampled, per axis."""
        return tuple((0, taps) for taps in self._taps())

    def _kernel_inputs(self) -> List[Tensor]:
        """Every tensor that the sampled kernel is a function of."""
        return list(tensors_of(self.kernel_net))

    def _grid(self, window: Window, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Positions [M, dim] of the taps inside ``window``, kept between calls."""
        key = (window, self._length, self.resolution, device, dtype,
               torch.is_inference_mode_enabled())
        if self._positions is not None and self._positions[0] == key:
            return self._positions[1]
        # A trace holds them as a constant, whether or not they are known from before.
        with untraced() if torch.jit.is_tracing() else contextlib.nullcontext():
            axes = [_axis_positions(n, self.resolution, self.causal)[start:stop]
                    for n, (start, stop) in zip(self._length, window)]
            grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, -2)
            grid = grid.to(device, dtype)
        if has_values(grid):
            self._positions = (key, grid)
        return grid

    def _sample(self, window: Window) -> Tensor:
        """The taps inside ``window``: [out, in / groups, *taps], [in, 1, *taps] if separable."""
        weight = self._kernel_inputs()[0]
        # The frequencies need more than half precision, whatever the model runs in.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        positions = self._grid(window, weight.device, dtype)
        device_type = 'cpu' if weight.device.type == 'meta' else weight.device.type
        with torch.autocast(device_type, enabled=False):
            if weight.dtype == dtype:
                values = self.kernel_net(positions)
            else:
                tensors = dict(self.kernel_net.named_parameters())
                values = torch.func.functional_call(
                    self.kernel_net, {name: t.to(dtype) for name, t in tensors.items()},
                    (positions, ))
            values = self._weigh(values, positions)
        if self.resolution != 1:
            values = values / self.resolution**self.dim
        shape = (self.in_channels, 1) if self.separable else (
            self.out_channels, self.in_channels // self.groups)
        taps = tuple(stop - start for start, stop in window)
        return values.t().reshape(*shape, *taps)

    def _weigh(self, values: Tensor, positions: Tensor) -> Tensor:
        """Hook for masks: [M, channels] at positions [M, dim]."""
        return values

    def sample_kernel(self) -> Tensor:
        """The kernel as it is now, sampled afresh and differentiable.

        Returns:
            Tensor: [out, in / groups, *taps], or [in, 1, *taps] for separable layers; float32
            at least.

        Raises:
            RuntimeError: When the size is 'same' and no input has been seen yet.
        """
        if self._length is None:
            if self.kernel_size == 'same' and not self.train_length.all():
                raise RuntimeError(f"{type(self).__name__} has kernel_size 'same' and has seen no "
                                   'input yet: run it once')
            self._first_look(())
        return self._sample(self._window())

    def _kernel(self) -> Tuple[Tensor, Window]:
        """The kernel to use now, and its window; kept between calls where that is safe."""
        inputs = self._kernel_inputs()
        recorded = is_compiling() or torch.jit.is_tracing() or not has_values(inputs[0])
        if (not self.cache or self.training or recorded or has_global_hooks()
                or is_watched(self.kernel_net) or is_touched(self.kernel_tap)
                or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs))):
            window = self._window()
            return self.kernel_tap(self._sample(window)), window
        # Values, not version counters: an update through .data leaves no trace in those, and
        # exponential moving averages are swapped in just so.
        key = (self._length, self.resolution, inputs[0].device, [t.dtype for t in inputs],
               torch.is_inference_mode_enabled())
        if self._kept is None or self._kept[0] != key or not same_values(inputs, self._kept[1]):
            window = self._window()
            with torch.no_grad():
                self._kept = (key, values_of(inputs), self._sample(window), window)
        return self._kept[2:]

    # -- the convolution ---------------------------------------------------------------------

    def _pads(self, window: Window) -> Window:
        """(left, right) zeros per axis for the taps inside ``window``; may be negative."""
        pads = []
        for axis, (taps, (start, stop)) in enumerate(zip(self._taps(), window)):
            dilation = self.dilation[axis]
            if self.padding is not None:
                grown = dilation * (taps - self._length[axis])
                left = self.padding[axis] + grown // 2
                right = self.padding[axis] + grown - grown // 2
            elif self.causal:
                left, right = dilation * (taps - 1), 0
            else:
                left = dilation * ((taps - 1) // 2)
                right = dilation * (taps - 1) - left
            pads.append((left - dilation * start, right - dilation * (taps - stop)))
        return tuple(pads)

    def forward(self, x: Tensor) -> Tensor:
        if is_symbolic(x):
            return as_one_node(self, x)
        if x.dim() != self.dim + 2 or x.shape[1] != self.in_channels:
            raise ValueError(f'{type(self).__name__} takes [B, {self.in_channels}] and {self.dim} '
                             f'spatial axes, got shape {tuple(x.shape)}')
        if self._length is None:
            self._first_look(x.shape[2:])
        kernel, window = self._kernel()
        pads = self._pads(window)
        if min(min(pair) for pair in pads) < 0:
            # Taps that were cropped away would only have met these margins.
            x = F.pad(x, [min(n, 0) for pair in reversed(pads) for n in pair])
            pads = tuple((max(left, 0), max(right, 0)) for left, right in pads)
        x = convolve(x, kernel, self.bias, self.stride, pads, self.dilation,
                     self.in_channels if self.separable else self.groups, self.method)
        return self.channel_mixer(x) if self.separable else x

    @torch.no_grad()
    def frozen(self) -> nn.Sequential:
        """The same function with ordinary layers: zero padding, convolution, 1x1 convolution.

        For deployment: any exporter and compiler takes it. The kernel is that of now.
        """
        kernel = self.sample_kernel()
        pads = self._pads(self._window())
        groups = self.in_channels if self.separable else self.groups
        conv = _CONV[self.dim](
            self.in_channels, kernel.shape[0], kernel.shape[2:], self.stride,
            dilation=self.dilation, groups=groups, bias=self.bias is not None)
        conv.to(self._kernel_inputs()[0])
        conv.weight.copy_(kernel)
        if self.bias is not None:
            conv.bias.copy_(self.bias)
        pad = _ZERO_PAD[self.dim]([n for pair in reversed(pads) for n in pair], 0.)
        layers = [pad, conv] + ([self.channel_mixer] if self.separable else [])
        return nn.Sequential(*layers).train(self.training)

    def extra_repr(self) -> str:
        return (f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, '
                f'stride={self.stride}, padding={self.padding}, dilation={self.dilation}, '
                f'groups={self.groups}, causal={self.causal}')


def specialise(base: Type[CKConvNd], prefix: str, summary: str) -> List[Type[CKConvNd]]:
    """The registered classes of a family: full and separable, for 1, 2 and 3 axes.

    Args:
        base (type): Class with the arithmetic for any ``dim`` and ``separable``.
        prefix (str): Name of the family, e.g. 'CKConv' for CKConv1d .. SeparableCKConv3d.
        summary (str): First line of the docstrings.
    """
    classes = []
    for separable in (False, True):
        for dim in (1, 2, 3):
            name = f'{"Separable" * separable}{prefix}{dim}d'
            kind = 'Depth-wise separable' if separable else 'Full'
            namespace = dict(
                dim=dim, separable=separable, __module__=base.__module__,
                __doc__=f'{kind} {summary} over {dim} ax{"i" if dim == 1 else "e"}s; see '
                        f':class:`{base.__name__}` for the arguments.')
            classes.append(MODELS.register_module()(type(name, (base, ), namespace)))
    return classes


def set_resolution(model: nn.Module, resolution: float) -> nn.Module:
    """Sample every continuous kernel of ``model`` for data of another resolution.

    Args:
        model (nn.Module): Any module; changed in place.
        resolution (float): Resolution of the data over that of training: 2 for a network trained
            at 32x32 and run on the same scenes at 64x64, 0.5 for 8 kHz after 16 kHz.

    Returns:
        nn.Module: ``model``.
    """
    for module in model.modules():
        if isinstance(module, CKConvNd):
            module.resolution = resolution
    return model


def freeze_kernels(model: nn.Module) -> nn.Module:
    """Replace every continuous convolution of ``model`` by ordinary layers, for deployment.

    Layers whose size is 'same' must have seen an input.

    Args:
        model (nn.Module): Changed in place, unless it is itself a continuous convolution.

    Returns:
        nn.Module: ``model``, or what takes its place.
    """
    if isinstance(model, CKConvNd):
        return model.frozen()
    for name, child in model.named_children():
        setattr(model, name, freeze_kernels(child))
    return model


(CKConv1d, CKConv2d, CKConv3d, SeparableCKConv1d, SeparableCKConv2d,
 SeparableCKConv3d) = specialise(CKConvNd, 'CKConv', 'continuous kernel convolution')
