"""Arguments of an N-dimensional convolution, checked and normalised.

(``tuple`` and ``any`` take lists here because torch.compile of torch 2.15 gives up on generators.)
"""
from typing import NamedTuple, Optional, Sequence, Tuple, Union

from torch import Tensor

from mmcontext.ops.arguments import per_axis, remembered

IntOrTuple = Union[int, Sequence[int]]
Padding = Union[str, int, Sequence[int], Sequence[Sequence[int]]]

_LARGEST_FFT = 1 << 24


class ConvGeometry(NamedTuple):
    """One convolution; every tuple has an entry per spatial axis.

    ``padding`` holds (left, right) pairs, ``extent`` is the side of the dilated kernel,
    ``out_size`` the side of the output, and ``full_out_size`` that at stride one.
    """
    size: Tuple[int, ...]
    kernel: Tuple[int, ...]
    extent: Tuple[int, ...]
    stride: Tuple[int, ...]
    padding: Tuple[Tuple[int, int], ...]
    dilation: Tuple[int, ...]
    groups: int
    out_size: Tuple[int, ...]
    full_out_size: Tuple[int, ...]


def _fast_sizes() -> Tuple[int, ...]:
    """All 2^a 3^b 5^c up to the largest transform, in order."""
    sizes = []
    two = 1
    while two <= _LARGEST_FFT:
        three = two
        while three <= _LARGEST_FFT:
            five = three
            while five <= _LARGEST_FFT:
                sizes.append(five)
                five *= 5
            three *= 3
        two *= 2
    return tuple(sorted(sizes))


_FAST_SIZES = _fast_sizes()


def fast_fft_size(n: int) -> int:
    """Smallest length ``>= n`` whose only prime factors are 2, 3 and 5.

    Args:
        n (int): Wanted length, at least 1.

    Returns:
        int: The length; ``n`` itself beyond ``2 ** 24``.
    """
    if n < 1:
        raise ValueError(f'n must be at least 1, got {n}')
    if n > _LARGEST_FFT:
        return n
    # (Not bisect, with which torch.compile before 2.6 ends a graph.)
    low, high = 0, len(_FAST_SIZES)
    while low < high:
        middle = (low + high) // 2
        if _FAST_SIZES[middle] < n:
            low = middle + 1
        else:
            high = middle
    return _FAST_SIZES[low]


def fft_size(geometry: ConvGeometry) -> Tuple[int, ...]:
    """Transform length per axis.

    A circular correlation is correct if what overhangs on either side wraps around into zeros.
    Both sides may share the same zeros, so the larger padding is enough. (A function, as
    torch.compile before 2.6 reads no properties of a named tuple.)
    """
    return tuple([
        fast_fft_size(max(n + max(pad), k, m))
        for n, pad, k, m in zip(geometry.size, geometry.padding, geometry.extent,
                                geometry.full_out_size)])


def resolve_padding(padding: Padding, extent: Sequence[int]) -> Tuple[Tuple[int, int], ...]:
    """(left, right) zeros per axis for a dilated kernel of side ``extent``.

    Args:
        padding: 'same' (centred, the odd zero on the right), 'causal' (all zeros in front), an
            int, an int per axis, or a (left, right) pair per axis.
        extent (Sequence[int]): Side of the dilated kernel per axis.
    """
    dim = len(extent)
    if isinstance(padding, str):
        if padding == 'same':
            return tuple([((k - 1) // 2, k - 1 - (k - 1) // 2) for k in extent])
        if padding == 'causal':
            return tuple([(k - 1, 0) for k in extent])
        raise ValueError(f"padding must be 'same', 'causal' or numbers, got {padding!r}")
    if isinstance(padding, int):
        padding = (padding, ) * dim
    if not isinstance(padding, Sequence) or len(padding) != dim:
        raise ValueError(f'padding must have an entry for each of the {dim} spatial axes, '
                         f'got {padding!r}')
    return tuple([per_axis(f'padding of axis {axis}', sides, 2, 0)
                  for axis, sides in enumerate(padding)])


def conv_geometry(x: Tensor,
                  weight: Tensor,
                  bias: Optional[Tensor] = None,
                  stride: IntOrTuple = 1,
                  padding: Padding = 0,
                  dilation: IntOrTuple = 1,
                  groups: int = 1) -> ConvGeometry:
    """Check the arguments of a convolution and return its geometry.

    Raises:
        ValueError: On shapes that do not match.
        TypeError: On tensors that are not real floating point.
    """
    dim = x.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(f'x must be [B, C, *size] with 1, 2 or 3 spatial axes, got shape '
                         f'{tuple(x.shape)}')
    if weight.dim() != x.dim():
        raise ValueError(f'weight must have {x.dim()} axes like x, got shape '
                         f'{tuple(weight.shape)}')
    for name, tensor in (('x', x), ('weight', weight)):
        if not tensor.is_floating_point():
            raise TypeError(f'{name} must be real floating point, got {tensor.dtype}')
    if x.device != weight.device:
        raise ValueError(f'weight must be on the device of x, {x.device}, got {weight.device}')
    if bias is not None and tuple(bias.shape) != (weight.shape[0], ):
        raise ValueError(f'bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}')
    return _geometry(tuple(x.shape), tuple(weight.shape), stride, padding, dilation, groups)


@remembered
def _geometry(x_shape: Tuple[int, ...], weight_shape: Tuple[int, ...], stride: IntOrTuple,
              padding: Padding, dilation: IntOrTuple, groups: int) -> ConvGeometry:
    """:func:`conv_geometry` from shapes."""
    dim = len(x_shape) - 2
    channels, out_channels = x_shape[1], weight_shape[0]
    if groups < 1 or channels % groups or out_channels % groups:
        raise ValueError(f'groups must divide the {channels} channels of x and the '
                         f'{out_channels} of the output, got {groups}')
    if weight_shape[1] != channels // groups:
        raise ValueError(f'weight must be [O, {channels // groups}, *kernel] for {channels} '
                         f'channels in {groups} groups, got shape {weight_shape}')
    size, kernel = x_shape[2:], weight_shape[2:]
    stride = per_axis('stride', stride, dim, 1)
    dilation = per_axis('dilation', dilation, dim, 1)
    extent = tuple([d * (k - 1) + 1 for d, k in zip(dilation, kernel)])
    pairs = resolve_padding(padding, extent)
    full_out_size = tuple([n + left + right - k + 1
                           for n, (left, right), k in zip(size, pairs, extent)])
    out_size = tuple([(n - 1) // s + 1 for n, s in zip(full_out_size, stride)])
    if any([n < 1 for n in (*size, *kernel)]):
        raise ValueError(f'the spatial axes of x and weight must not be empty, got sizes {size} '
                         f'and {kernel}')
    if any([n < 1 for n in out_size]):
        raise ValueError(f'the kernel, of extent {extent}, must fit into the padded input; x has '
                         f'size {size} and padding {pairs}')
    return ConvGeometry(size, kernel, extent, stride, pairs, dilation, groups, out_size,
                        full_out_size)
