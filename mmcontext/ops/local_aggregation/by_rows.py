"""The kernels of channels-last networks in the layout that the CUDA kernels read."""
import torch
from torch import Tensor

from mmcontext.ops.choice import AUTO, requested
from mmcontext.ops.layout import is_channels_last
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.tracing import eager_refusal, is_recording, is_symbolic

ROWS_VARIABLE = 'MMCONTEXT_KERNELS_BY_ROWS'
# Extra channels after the reduced ones: a one for the bias, and zeros that keep rows aligned.
_MORE = 8


def wants_rows(r: Tensor) -> bool:
    """Whether kernels made from ``r`` [B, Cr, H, W] should be made by :func:`span_by_rows`.

    A 1x1 convolution of a channels-last map writes all taps of a pixel together, which the CUDA
    kernels would have to read element by element. ``MMCONTEXT_KERNELS_BY_ROWS=torch`` keeps the
    convolution.

    Raises:
        ValueError: The variable is neither 'auto' nor 'torch'.
    """
    return (not is_symbolic(r) and r.is_cuda and torch.version.hip is None and not is_recording()
            and is_channels_last(r)
            and requested('method', None, ROWS_VARIABLE, ('torch', )).way == AUTO)


def span_by_rows(r: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix product that writes a contiguous result.

    Args:
        r: [B, Cr, H, W].
        weight: [Co, Cr] or [Co, Cr, 1, 1].
        bias: [Co]. It becomes a column of the weight: adding it afterwards would read and write
            the result once more.

    Returns:
        [B, Co, H, W], contiguous.
    """
    if not UNAVAILABLE and type(r) is Tensor and eager_refusal() is None:
        return torch.ops.mmcontext_native.span_by_rows(r, weight, bias)
    batch, _, height, width = r.shape
    one = torch.eye(_MORE, 1, dtype=r.dtype, device=r.device)
    r = torch.cat((r.flatten(2), one.expand(batch, _MORE, height * width)), 1)
    more = torch.nn.functional.pad(bias[:, None], (0, _MORE - 1))
    weight = torch.cat((weight.flatten(1), more), 1)
    return torch.bmm(weight.expand(batch, -1, -1), r).view(batch, -1, height, width)
