"""The aggregation of equal parts of the channels, each with kernels of its own."""
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
    the groups of ``w``; the results, one after the other.

    The CUDA kernels read and write the parts of a channels-last map where they lie. Elsewhere
    the maps are taken apart and the results put together.

    Args: as :func:`local_aggregation`, and
        parts: How many; divides the groups of ``w``.
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
    # (By number: torch.fx can look at a part, not go through all.)
    return torch.cat([local_aggregation(maps[i], kernels[i], kernel_size, stride, padding,
                                        dilation, share, backend) for i in range(parts)], dim=1)
