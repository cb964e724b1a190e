"""The aggregation of equal parts of the channels, each with its own kernels."""
from typing import Optional

import torch
from torch import Tensor

from mmcontext.ops.arguments import IntPair
from mmcontext.ops.local_aggregation.backends import requested_backend
from mmcontext.ops.local_aggregation.frontend import local_aggregation
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.tracing import eager_refusal


def aggregate_in_parts(x: Tensor, w: Tensor, parts: int, kernel_size: IntPair,
                       stride: IntPair = 1, padding: IntPair = 0, dilation: IntPair = 1,
                       share: str = 'block', backend: Optional[str] = None) -> Tensor:
    """:func:`local_aggregation` of each of ``parts`` equal parts of the channels of ``x`` and of
    the groups of ``w``; the results are concatenated.

    The CUDA kernels read and write the parts of a channels-last map in place. Otherwise the maps
    are split and the results concatenated.

    Args: as :func:`local_aggregation`, and
        parts: Number of parts; divides the groups of ``w``.
    """
    if parts == 1:
        return local_aggregation(x, w, kernel_size, stride, padding, dilation, share, backend)
    if type(x) is Tensor and not UNAVAILABLE and eager_refusal() is None:
        chosen = requested_backend(backend)
        if x.is_cuda or chosen == 'null':
            y = torch.ops.mmcontext_native.aggregation_in_parts(
                x, w, kernel_size, stride, padding, dilation, share == 'interleaved', parts,
                chosen)
            if y is not None:
                return y
    maps, kernels = x.chunk(parts, 1), w.chunk(parts, 1)
    # (By index: a torch.fx proxy can be indexed, but not iterated over.)
    return torch.cat([local_aggregation(maps[i], kernels[i], kernel_size, stride, padding,
                                        dilation, share, backend) for i in range(parts)], dim=1)
