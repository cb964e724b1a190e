"""Argument checks and the public entry point."""
import contextlib
from typing import Callable, Iterator, Optional, Tuple

from torch import Tensor
from torch.overrides import handle_torch_function

from mmcontext.ops.arguments import IntPair, per_axis, remembered
from mmcontext.ops.choice import Explanation, explanation
from mmcontext.ops.local_aggregation.backends import (
    REFERENCE,
    Geometry,
    choose,
    refusals,
    register_backend,
    requested_backend,
)
from mmcontext.ops.local_aggregation.cuda import CudaBackend, NullBackend
from mmcontext.ops.local_aggregation.native import NativeBackend
from mmcontext.ops.local_aggregation.operators import LIBRARY, check_same_kind, forward_op
from mmcontext.ops.local_aggregation.reference import aggregate
from mmcontext.ops.local_aggregation.shift_add import ShiftAddBackend
from mmcontext.ops.local_aggregation.standard import aggregate_standard
from mmcontext.ops.local_aggregation.triton_backend import TritonBackend
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.tracing import in_torch_func, is_exporting, is_symbolic

register_backend('native', NativeBackend())
register_backend('cuda', CudaBackend())
register_backend('null', NullBackend())
register_backend('triton', TritonBackend())
register_backend('torch', ShiftAddBackend())
if UNAVAILABLE:
    from mmcontext.ops.local_aggregation import portable
    portable.register(LIBRARY)

_SHARES = ('block', 'interleaved')
# What runs instead of the operator; None for the operator itself.
_stand_in: Optional[Callable[[Tensor, Tensor, Geometry], Tensor]] = None


@contextlib.contextmanager
def standard_operators(
        aggregation: Callable[[Tensor, Tensor, Geometry], Tensor] = aggregate_standard
) -> Iterator[None]:
    """Context in which :func:`local_aggregation` runs as standard torch operators.

    For exporters that cannot represent a custom operator. ``torch.onnx.export`` and
    ``torch.export.export`` (except with ``strict=True``) are recognised without it.

    Args:
        aggregation: What runs instead; to be given for a runtime with an operator of its own.
    """
    global _stand_in
    before, _stand_in = _stand_in, aggregation
    try:
        yield
    finally:
        _stand_in = before


def standard_operators_wanted(backend: str) -> bool:
    """Whether this call has to use standard torch operators."""
    return (backend == REFERENCE or _stand_in is not None or is_exporting()
            or in_torch_func())


def make_geometry(kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair,
                  share: str) -> Geometry:
    """Check the arguments of :func:`local_aggregation` and make a :class:`Geometry` of them."""
    if share not in _SHARES:
        raise ValueError(f"share must be 'block' or 'interleaved', got {share!r}")
    return Geometry(per_axis('kernel_size', kernel_size, 2, 1), per_axis('stride', stride, 2, 1),
                    per_axis('padding', padding, 2, 0), per_axis('dilation', dilation, 2, 1),
                    share == 'interleaved')


def check_floating_point(x: Tensor) -> None:
    """Raise unless the feature map has a dtype that can be aggregated."""
    if not x.dtype.is_floating_point:
        raise TypeError(f'x must have a floating-point dtype, got {x.dtype}')


def checked_output_size(x_shape: Tuple[int, ...], geometry: Geometry) -> Tuple[int, int]:
    """Height and width of the aggregation of a feature map, whose shape is checked."""
    if len(x_shape) != 4:
        raise ValueError(f'x must be [B, C, H, W], got shape {tuple(x_shape)}')
    out_h, out_w = geometry.output_size(*x_shape[-2:])
    if out_h < 1 or out_w < 1:
        raise ValueError(f'kernel_size {geometry.kernel_size} with dilation {geometry.dilation} '
                         f'is larger than the padded input {tuple(x_shape[-2:])} + 2 * '
                         f'{geometry.padding}')
    return out_h, out_w


@remembered
def _check_shapes(x_shape: Tuple[int, ...], w_shape: Tuple[int, ...], kernel_size: IntPair,
                  stride: IntPair, padding: IntPair, dilation: IntPair, share: str) -> Geometry:
    geometry = make_geometry(kernel_size, stride, padding, dilation, share)
    out_h, out_w = checked_output_size(x_shape, geometry)
    if len(w_shape) != 5:
        raise ValueError(f'w must be [B, G, Kh*Kw, Ho, Wo], got shape {tuple(w_shape)}')
    channels, groups = x_shape[1], w_shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f'the {channels} channels of x are not divisible by the {groups} '
                         'groups of w')
    kernel_h, kernel_w = geometry.kernel_size
    expected = (x_shape[0], groups, kernel_h * kernel_w, out_h, out_w)
    if tuple(w_shape) != expected:
        raise ValueError(f'w must have shape {expected} for x of shape {tuple(x_shape)} and '
                         f'{geometry}, got {tuple(w_shape)}')
    return geometry


def _check_operands(x: Tensor, w: Tensor, *geometry_arguments) -> Geometry:
    check_floating_point(x)
    return _check_shapes(x.shape, w.shape, *geometry_arguments)


def local_aggregation(x: Tensor, w: Tensor, kernel_size: IntPair, stride: IntPair = 1,
                      padding: IntPair = 0, dilation: IntPair = 1, share: str = 'block',
                      backend: Optional[str] = None) -> Tensor:
    r"""Weighted sum of each pixel's neighbourhood, with different weights at every pixel.

    .. math:: y_{b,c,p} = \sum_k w_{b,g(c),k,p}\, x_{b,c,s p + d k - \text{padding}}

    with zeros outside x. It is the common core of involution (https://arxiv.org/abs/2103.06255),
    C-volution and the contextual transformer block (https://arxiv.org/abs/2107.12292).

    Args:
        x: Feature map [B, C, H, W], of any floating dtype and memory layout. A channels-last
            x gives a channels-last result.
        w: Kernels [B, G, Kh*Kw, Ho, Wo]; G divides C. Same dtype and device as x; under
            autocast both are cast to autocast's dtype.
        kernel_size: Kernel height and width.
        stride: Step between the centres of two output pixels, in input pixels.
        padding: Zero rows and columns added on each side.
        dilation: Distance between two taps, in input pixels.
        share: How channels share kernels: 'block' gives channel c the kernel c // (C/G)
            (involution, C-volution), 'interleaved' the kernel c % G (CoT).
        backend: Implementation to use, or 'auto' for the fastest that supports the tensors; see
            :func:`explain`. A named backend that does not support them raises. None for the
            environment variable ``MMCONTEXT_BACKEND``, or 'auto'.

    Returns:
        [B, C, Ho, Wo] in x's dtype; low precision is accumulated in float32.

    Raises:
        ValueError: The backend is unknown, or shapes, devices or geometry do not match.
        TypeError: x is not floating-point, or the dtypes differ outside autocast.
        RuntimeError: The requested backend does not support these tensors.
    """
    if is_symbolic(x) or is_symbolic(w):
        return handle_torch_function(local_aggregation, (x, w), x, w, kernel_size, stride,
                                     padding, dilation, share, backend)
    geometry = _check_operands(x, w, kernel_size, stride, padding, dilation, share)
    backend = requested_backend(backend)
    if standard_operators_wanted(backend):
        check_same_kind('x and w', x, w)
        stand_in = aggregate if backend == REFERENCE else _stand_in or aggregate_standard
        return stand_in(x, w, geometry)
    return forward_op(x, w, *geometry, backend)


def explain(x: Tensor, w: Tensor, kernel_size: IntPair, stride: IntPair = 1, padding: IntPair = 0,
            dilation: IntPair = 1, share: str = 'block',
            backend: Optional[str] = None) -> Explanation:
    """Which backend :func:`local_aggregation` would use for these arguments, and why.

    Args: as :func:`local_aggregation`.

    Returns:
        ``chosen``: the backend's name, or 'standard' if a graph for export is being recorded or
        :func:`standard_operators` is active; ``refused``: backend -> reason, for those that do
        not support the tensors.
    """
    geometry = _check_operands(x, w, kernel_size, stride, padding, dilation, share)
    reasons = refusals(x, w, geometry)
    backend = requested_backend(backend)
    if standard_operators_wanted(backend):
        chosen = REFERENCE if backend == REFERENCE else 'standard'
    else:
        chosen = choose(x, w, geometry, backend)[0]
    return explanation(chosen, reasons)
