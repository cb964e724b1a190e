"""Convolutions whose kernel is sampled from a network on coordinates."""
from typing import Optional, Sequence, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mmcontext.layers._geometry import padding_for, same_padding
from mmcontext.layers._modules import as_one_node
from mmcontext.layers.continuous_kernel import ContinuousKernel, Window
from mmcontext.ops.arguments import per_axis
from mmcontext.ops.fft_conv import convolve
from mmcontext.ops.tracing import is_symbolic
from mmcontext.registry import MODELS

KernelSize = Union[str, int, Sequence[int]]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_ZERO_PAD = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}
# Keys that belong to the kernel now, and belonged to the layer in version 0.1.
_MOVED = ('mask_width', 'mask_mean', 'mask_threshold', 'train_length', 'initialized')


class CKConvNd(nn.Module):
    """Continuous kernel convolution over ``dim`` axes; the base of the concrete classes.

    The kernel is a function on [-1, 1]^dim given by a small network, sampled at any number of
    points: it can be as long as the input with a fixed number of parameters, and can be resampled
    for data of another resolution (CKConv, arXiv 2102.02611; CCNN, arXiv 2206.03398).

    Use the concrete classes: ``CKConv1d``, ``CKConv2d``, ``CKConv3d`` (full kernels) and
    ``SeparableCKConv1d`` .. ``3d`` (a depth-wise continuous kernel, then a 1x1 convolution
    ``channel_mixer``). The signature starts like that of ``Conv2d``, so they work as conv_cfg.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int, optional): Channels of the output. None means ``in_channels``.
        kernel_size (int | Sequence[int] | 'same'): Number of taps. 'same' takes the size of the
            first input (rounded up to odd when centred) and remembers it in the checkpoint.
            Defaults to 'same'.
        stride (int | Sequence[int]): Defaults to 1.
        padding (int | Sequence[int], optional): Zeros on both sides of each axis. None keeps the
            size at stride 1: centred, or in front when causal. Defaults to None.
        dilation (int | Sequence[int]): Distance between taps. Defaults to 1.
        groups (int): Groups of the full kernel, or of the channel mixer. Defaults to 1.
        bias (bool): Bias of the continuous convolution and of the mixer. Defaults to True.
        kernel_cfg (dict, optional): Kernel network, see ``mmcontext.layers.kernel_nets``.
            Defaults to ``dict(type='MAGNet', hidden_channels=32, num_layers=3, omega_0=100.)``.
        causal (bool): Outputs depend on no later position on any axis. Defaults to False.
        resolution (float): Taps per tap of the trained kernel: 2 samples it twice as finely,
            for data sampled twice as densely, and rescales it so that outputs keep their scale.
            May be set at any time, see :func:`set_resolution`. Defaults to 1.
        method (str, optional): How to convolve, see :func:`mmcontext.ops.convolve`.
            Defaults to None: predicted.
        cache (bool): In eval mode without gradients, sample the kernel once and keep it until
            anything it depends on has changed. Not while the kernel network has hooks, which
            have to run. Defaults to True.
        kernel_size_override (int | Sequence[int] | 'same', optional): Kernel size used instead of
            ``kernel_size``, with the padding adapted, for callers that pass their own kernel
            size (conv_cfg). Defaults to None.

    Shape: [B, in_channels, *size] to [B, out_channels, *out].

    Half precision: use autocast, or :func:`freeze_kernels` first. ``.half()`` and ``.bfloat16()``
    round the frequencies of the kernel network, which are in the hundreds, and so its kernels
    change.

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
        shape = (in_channels, 1) if self.separable else (out_channels, in_channels // groups)
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.kernel = self._build_kernel(
            shape=shape, dim=self.dim, size=self.kernel_size, causal=causal,
            resolution=resolution, cache=cache,
            kernel_cfg=dict(self._default_kernel, **(kernel_cfg or {})))
        if self.separable:
            self.channel_mixer = _CONV[self.dim](
                in_channels, out_channels, 1, groups=groups, bias=bias)
            self._init_mixer(self.channel_mixer.weight)
            if bias:
                nn.init.zeros_(self.channel_mixer.bias)

    def _build_kernel(self, **arguments) -> ContinuousKernel:
        return ContinuousKernel(**arguments)

    @staticmethod
    def _init_mixer(weight: Tensor) -> None:
        nn.init.kaiming_uniform_(weight, nonlinearity='linear')

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
            if self.padding == same_padding(self.kernel_size, self.dilation):
                self.padding = None
            elif override == 'same':
                raise ValueError(f"kernel_size_override 'same' needs padding that keeps the size, "
                                 f'got {self.padding}')
            else:
                self.padding = padding_for(self.kernel_size, override, self.padding,
                                           self.dilation)
        self.kernel_size = override

    @property
    def kernel_net(self) -> nn.Module:
        """The network that the kernel is sampled from."""
        return self.kernel.net

    @property
    def train_length(self) -> Tensor:
        """Buffer with the taps per axis; zeros if no input has been seen yet."""
        return self.kernel.train_length

    @property
    def resolution(self) -> float:
        """Taps per tap of the trained kernel."""
        return self.kernel.resolution

    @resolution.setter
    def resolution(self, value: float) -> None:
        self.kernel.resolution = value

    @property
    def cache(self) -> bool:
        """Whether the kernel is cached when that is safe."""
        return self.kernel.cache

    @cache.setter
    def cache(self, value: bool) -> None:
        self.kernel.cache = value

    def sample_kernel(self) -> Tensor:
        """The kernel as it is now, sampled afresh and differentiable.

        Returns:
            Tensor: [out, in / groups, *taps], or [in, 1, *taps] for separable layers; at least
            float32.

        Raises:
            RuntimeError: When the size is 'same' and no input has been seen yet.
        """
        return self.kernel.sample()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        """Accept checkpoints of version 0.1 too."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix):]
            if name in _MOVED:
                state_dict[f'{prefix}kernel.{name}'] = state_dict.pop(key)
            elif name.startswith('kernel_net.'):
                name = name[len('kernel_net.'):]
                state_dict[f'{prefix}kernel.net.{name}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _pads(self, window: Window) -> Window:
        """(left, right) zeros per axis for the taps inside ``window``; may be negative."""
        pads = []
        for axis, (taps, (start, stop)) in enumerate(zip(self.kernel.taps(), window)):
            dilation = self.dilation[axis]
            if self.padding is not None:
                grown = dilation * (taps - self.kernel.length[axis])
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
        if self.kernel.length is None:
            self.kernel.look(x.shape[2:])
        kernel, window = self.kernel.current()
        pads = self._pads(window)
        if min(min(pair) for pair in pads) < 0:
            # Only taps that were cropped away would have reached these margins.
            x = F.pad(x, [min(n, 0) for pair in reversed(pads) for n in pair])
            pads = tuple((max(left, 0), max(right, 0)) for left, right in pads)
        x = convolve(x, kernel, self.bias, self.stride, pads, self.dilation,
                     self.in_channels if self.separable else self.groups, self.method)
        return self.channel_mixer(x) if self.separable else x

    @torch.no_grad()
    def frozen(self) -> nn.Sequential:
        """The same function with ordinary layers: zero padding, convolution, 1x1 convolution.

        For deployment: any exporter and compiler supports it. The kernel is the current one.
        """
        kernel = self.kernel.sample()
        pads = self._pads(self.kernel.window())
        groups = self.in_channels if self.separable else self.groups
        conv = _CONV[self.dim](
            self.in_channels, kernel.shape[0], kernel.shape[2:], self.stride,
            dilation=self.dilation, groups=groups, bias=self.bias is not None)
        conv.to(self.kernel.inputs()[0])
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


def set_resolution(model: nn.Module, resolution: float) -> nn.Module:
    """Sample every continuous kernel of ``model`` for data of another resolution.

    Args:
        model (nn.Module): Any module; changed in place.
        resolution (float): Resolution of the data over that of training: 2 for a network trained
            at 32x32 and run on the same scenes at 64x64, 0.5 for 8 kHz data after training at
            16 kHz.

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
        nn.Module: ``model``, or its replacement.
    """
    if isinstance(model, CKConvNd):
        return model.frozen()
    for name, child in model.named_children():
        setattr(model, name, freeze_kernels(child))
    return model



@MODELS.register_module()
class CKConv1d(CKConvNd):
    """Full continuous kernel convolution over 1 axis; see :class:`CKConvNd`."""

    dim = 1
    separable = False


@MODELS.register_module()
class CKConv2d(CKConvNd):
    """Full continuous kernel convolution over 2 axes; see :class:`CKConvNd`."""

    dim = 2
    separable = False


@MODELS.register_module()
class CKConv3d(CKConvNd):
    """Full continuous kernel convolution over 3 axes; see :class:`CKConvNd`."""

    dim = 3
    separable = False


@MODELS.register_module()
class SeparableCKConv1d(CKConvNd):
    """Depth-wise separable continuous kernel convolution over 1 axis; see :class:`CKConvNd`."""

    dim = 1
    separable = True


@MODELS.register_module()
class SeparableCKConv2d(CKConvNd):
    """Depth-wise separable continuous kernel convolution over 2 axes; see :class:`CKConvNd`."""

    dim = 2
    separable = True


@MODELS.register_module()
class SeparableCKConv3d(CKConvNd):
    """Depth-wise separable continuous kernel convolution over 3 axes; see :class:`CKConvNd`."""

    dim = 3
    separable = True
