"""The choice between CUDA kernels for channels-last maps and torch's functions."""
import os
from typing import Optional

import torch
from torch import Tensor
from torch.nn import Parameter

from mmcontext.ops.choice import AUTO, Explanation, cannot_serve, explanation, requested
from mmcontext.ops.native_library import UNAVAILABLE
from mmcontext.ops.tracing import eager_refusal

# 'null': everything that the host does for a launch, on the CPU and without the launch.
_WAYS = ('cuda', 'torch', 'null')


class KernelSwitch:
    """The choice for one operator, by its argument ``method`` or an environment variable.

    Args:
        operator: Its name in messages.
        variable: The environment variable that is used if ``method`` is None.
        refusal: Name of the C++ function that says why the kernels do not support a call, '' if
            they do; its last argument is whether the CPU stands in for a GPU.
    """

    def __init__(self, operator: str, variable: str, refusal: str) -> None:
        self.operator = operator
        self.variable = variable
        self._refusal = refusal

    def is_on_gpu(self, x: Tensor, method: Optional[str] = None) -> bool:
        """Whether a map is on a GPU, or the CPU stands in for one, and the library is there."""
        return (type(x) is Tensor and not UNAVAILABLE
                and (x.is_cuda or (method or os.environ.get(self.variable)) == 'null'))

    def may_serve(self, x: Tensor, method: Optional[str]) -> bool:
        """Whether the kernels are worth trying."""
        return method != 'torch' and self.is_on_gpu(x, method) and eager_refusal() is None

    def requested(self, method: Optional[str]) -> str:
        """The method requested by an argument or, failing that, by the environment."""
        return requested('method', method, self.variable, _WAYS).way

    def refusal(self, on_host: bool, *operands) -> Optional[str]:
        """Why the kernels do not support the operands of the C++ function, or None."""
        if UNAVAILABLE:
            return UNAVAILABLE
        if type(operands[0]) is not Tensor or any(
                isinstance(t, Tensor) and type(t) not in (Tensor, Parameter) for t in operands):
            return 'an operand is of a subclass of Tensor'
        return eager_refusal() or getattr(torch.ops.mmcontext_native, self._refusal)(
            *operands, on_host) or None

    def insist(self, method: Optional[str], *operands) -> None:
        """Raise if torch's functions are about to be used although kernels were requested."""
        if method is not None and self.requested(method) in ('cuda', 'null'):
            raise cannot_serve('method', method, self.operator,
                               self.refusal(method == 'null', *operands))

    def explain(self, method: Optional[str], *operands) -> Explanation:
        """``chosen``: 'cuda', 'null' or 'torch'; ``refused``: {'cuda': reason} if the kernels do
        not support the call, else empty."""
        wanted = self.requested(method)
        reason = self.refusal(wanted == 'null', *operands)
        if wanted == AUTO:
            wanted = 'torch' if reason else 'cuda'
        return explanation(wanted, {'cuda': reason})
