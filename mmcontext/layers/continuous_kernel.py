"""A convolution kernel that is a function of coordinates: its network, its window, its cache."""
import contextlib
import math
from typing import List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from mmcontext.layers._kernel_state import (
    KeptResult,
    Positions,
    divide_weight,
    has_values,
    is_watched,
    tensors_of,
)
from mmcontext.layers._modules import has_global_hooks, is_touched
from mmcontext.layers.kernel_nets import KernelNet
from mmcontext.ops.tracing import (
    in_inference_mode,
    is_capturing,
    is_compiling,
    out_of_graphs,
    untraced,
)
from mmcontext.registry import MODELS

Window = Tuple[Tuple[int, int], ...]

RUN_FIRST = ('run a continuous convolution once in the same mode before it is exported or captured '
             'in a CUDA graph: that fixes the size of its kernel')
_HALF = (torch.float16, torch.bfloat16)


def _tap_count(length: int, resolution: float, causal: bool) -> int:
    """Number of taps along one axis of a kernel that was trained with ``length`` of them."""
    if resolution == 1 or length == 1:
        return length
    if causal:
        return math.floor((length - 1) * resolution + 1e-6) + 1
    return 2 * math.floor((length - 1) / 2 * resolution + 1e-6) + 1


def _axis_positions(length: int, resolution: float, causal: bool) -> Tensor:
    """Coordinates of the taps along one axis.

    They are float32 and computed on the CPU, whatever the layer's dtype and device: kernels with
    frequencies in the thousands were trained on the rounded coordinates, and other rounding would
    shift their phase.
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


class ContinuousKernel(nn.Module):
    """The kernel of a continuous convolution, sampled from a network on [-1, 1]^dim.

    Calling it samples the taps inside a window, with gradients; a forward hook receives the
    sampled kernel. :meth:`current` is what a convolution uses: the kernel as it is now, cached
    between calls when nothing can have changed.

    Args:
        shape (tuple[int, int]): Output channels, and input channels per group.
        dim (int): Number of axes.
        size (tuple[int, ...] | 'same'): Taps per axis. 'same' takes the size of the first input.
        kernel_cfg (dict): Kernel network, see ``mmcontext.layers.kernel_nets``.
        causal (bool): Whether the last tap is the newest position. Defaults to False.
        resolution (float): Taps per tap of the trained kernel. Defaults to 1.
        cache (bool): Whether to cache the kernel when that is safe. Defaults to True.

    Shape: a window, (first, last + 1) per axis, to [*shape, *taps]; at least float32.
    """

    def __init__(self, shape: Tuple[int, int], dim: int, size: Union[str, Tuple[int, ...]],
                 kernel_cfg: dict, causal: bool = False, resolution: float = 1.,
                 cache: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.dim = dim
        self.size = size
        self.causal = causal
        self.cache = cache
        self._kept = KeptResult()
        self._positions = Positions()
        self._forget()
        self.resolution = resolution
        # With a scope, because the caller's default scope may be that of any library.
        self.net = MODELS.build(
            dict(_scope_='mmcontext', dim=dim, out_channels=math.prod(shape), causal=causal,
                 **kernel_cfg))
        length = (0, ) * dim if size == 'same' else size
        # Floating-point, because model averaging includes the buffers, and would round integers
        # down and reject flags.
        self.register_buffer('train_length', torch.tensor(length, dtype=torch.float))
        self.register_buffer('initialized', torch.zeros(1))

    @property
    def resolution(self) -> float:
        return self._resolution

    @resolution.setter
    def resolution(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f'resolution must be positive, got {value!r}')
        self._resolution = float(value)
        self._known_window = None
        self._kept.clear()

    def _forget(self) -> None:
        """Drop what was read from the buffers, and everything derived from it."""
        self._length: Optional[Tuple[int, ...]] = None
        self._known_window: Optional[Window] = None
        self._kept.clear()

    def _apply(self, *args, **kwargs) -> 'ContinuousKernel':
        length = self.train_length
        super()._apply(*args, **kwargs)
        if self.train_length.dtype != length.dtype:  # half precision would round it
            self.train_length = length.to(self.train_length.device)
        return self

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    @property
    def length(self) -> Optional[Tuple[int, ...]]:
        """Taps per axis at resolution 1; None before the first input."""
        return self._length

    def taps(self) -> Tuple[int, ...]:
        """Taps of the whole kernel, per axis."""
        return tuple([_tap_count(n, self._resolution, self.causal) for n in self._length])

    def window(self) -> Window:
        """First and last tap (exclusive) that are sampled, per axis."""
        return tuple([(0, taps) for taps in self.taps()])

    @out_of_graphs
    @untraced()
    def look(self, size: Sequence[int]) -> None:
        """Fix the size and rescale the network's output, unless this has been done already.

        Args:
            size: Spatial size of an input.
        """
        seen = tuple(int(n) if self.causal else int(n) | 1 for n in size)
        if self.train_length.device.type == 'meta':
            self._length = seen if self.size == 'same' else self.size
            return
        if not has_values(self.train_length) or is_capturing(self.train_length):
            raise RuntimeError(RUN_FIRST)
        length = tuple(round(n) for n in self.train_length.tolist())
        if not all(length):
            length = seen
            with torch.no_grad():
                self.train_length.copy_(torch.tensor(length))
        self._length = length
        if not self.initialized.item():
            # As in Chang et al., ICLR 2020: the output's variance must not grow with the kernel.
            fan_in = self.shape[1] * math.prod(stop - start for start, stop in self.window())
            with torch.no_grad():
                divide_weight(self.net.output_linear, math.sqrt(fan_in))
                self.initialized.fill_(1)

    def inputs(self) -> List[Tensor]:
        """Every tensor that the sampled kernel is a function of."""
        return list(tensors_of(self.net))

    def _grid(self, window: Window, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Positions [M, dim] of the taps inside ``window``, cached between calls."""
        def make() -> Tensor:
            if is_capturing(weight):
                raise RuntimeError(RUN_FIRST)
            # In a trace they are a constant, whether or not they were cached before.
            with untraced() if torch.jit.is_tracing() else contextlib.nullcontext():
                axes = [_axis_positions(n, self._resolution, self.causal)[start:stop]
                        for n, (start, stop) in zip(self._length, window)]
                grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, -2)
                return grid.to(weight.device, dtype)

        key = (window, self._length, self._resolution, weight.device, dtype,
               in_inference_mode())
        return self._positions.get(key, make)

    def forward(self, window: Window) -> Tensor:
        """The taps inside ``window``, sampled afresh."""
        weight = next(tensors_of(self.net))
        # The frequencies need more than half precision, whatever the model runs in.
        dtype = torch.float32 if weight.dtype in _HALF else weight.dtype
        positions = self._grid(window, weight, dtype)
        device_type = 'cpu' if weight.device.type == 'meta' else weight.device.type
        with torch.autocast(device_type, enabled=False):
            values = self._weigh(self._values(positions, weight.dtype), positions)
        if self._resolution != 1:
            values = values / self._resolution**self.dim
        return values.reshape(*self.shape, *[stop - start for start, stop in window])

    def _values(self, positions: Tensor, stored: torch.dtype) -> Tensor:
        """The output of the network, [channels, M]."""
        if stored != positions.dtype:
            tensors = {name: t.to(positions.dtype) for name, t in self.net.named_parameters()}
            return torch.func.functional_call(self.net, tensors, (positions, )).t()
        if isinstance(self.net, KernelNet) and not (is_touched(self.net) or has_global_hooks()):
            return self.net.by_channel(positions)
        return self.net(positions).t()

    def _weigh(self, values: Tensor, positions: Tensor) -> Tensor:
        """Hook for masks: [channels, M] at positions [M, dim]."""
        return values

    def sample(self) -> Tensor:
        """The kernel as it is now, sampled afresh and differentiable.

        Raises:
            RuntimeError: When the size is 'same' and no input has been seen yet.
        """
        if self._length is None:
            if self.size == 'same' and not self.train_length.all():
                raise RuntimeError("a continuous kernel has kernel_size 'same' and has seen no "
                                   'input yet: run it once')
            self.look(())
        return self.forward(self.window())

    def current(self) -> Tuple[Tensor, Window]:
        """The kernel to use now, and its window; cached between calls when that is safe."""
        inputs = [] if self.training or not self.cache or is_compiling() else self.inputs()
        if self.training:
            self._kept.clear()
        if not inputs or self._must_sample(inputs):
            window = self.window()
            return self(window), window
        key = (self._length, self._resolution, inputs[0].device, [t.dtype for t in inputs],
               in_inference_mode())
        return self._kept.get(key, inputs, self._sample_with_window)

    def _must_sample(self, inputs: List[Tensor]) -> bool:
        """Whether gradients are needed, a graph is being recorded, or there are hooks."""
        return (torch.jit.is_tracing() or not has_values(inputs[0])
                or is_capturing(inputs[0]) or has_global_hooks() or is_watched(self)
                or (torch.is_grad_enabled() and any([t.requires_grad for t in inputs])))

    @torch.no_grad()
    def _sample_with_window(self) -> Tuple[Tensor, Window]:
        window = self.window()
        return self.forward(window), window

    def extra_repr(self) -> str:
        return (f'shape={self.shape}, size={self.size}, causal={self.causal}, '
                f'resolution={self._resolution:g}')
