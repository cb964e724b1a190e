"""Whether a graph is being recorded, on every supported version of torch.

Some of this has no public API in torch. If a version lacks a private name, the answer is the
conservative one, with which the modules themselves are called and nothing else.
"""
import contextlib
from typing import Any, Callable, Iterator, Optional

import torch
from torch import Tensor
from torch.fx import Proxy

# In torch.compiler since 2.2; before that dynamo had its own.
_is_compiling = getattr(torch.compiler, 'is_compiling', None)
_is_dynamo_compiling = getattr(torch.compiler, 'is_dynamo_compiling', None)
_peek_transforms = getattr(getattr(torch._C, '_functorch', None), 'peek_interpreter_stack',
                           lambda: 'unknown')
_count_modes = getattr(torch._C, '_len_torch_dispatch_stack', lambda: 1)


def is_compiling() -> bool:
    """Under ``torch.compile`` or ``torch.export``."""
    if _is_compiling is None:
        return torch._dynamo.is_compiling()
    return _is_compiling()


def out_of_graphs(function: Callable) -> Callable:
    """Decorator: ``torch.compile`` does not look into the function.

    torch 2.2 cannot ``jit.trace`` such a function; before 2.5 networks are not compiled.
    """
    return function if torch.__version__ < (2, 5) else torch.compiler.disable(function)


def is_exporting() -> bool:
    """Whether a graph for another runtime is being recorded: ``torch.export`` or ONNX.

    ``torch.compiler.is_exporting`` is no help: under dynamo it is True in plain compilation too.
    Exports that go through dynamo (``strict=True``) count as compilation here.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    return is_compiling() and _is_dynamo_compiling is not None and not _is_dynamo_compiling()


def is_recording() -> bool:
    """Whether a graph is being recorded for use outside eager mode: exported or jit-traced."""
    return torch.jit.is_tracing() or is_exporting()


def is_capturing(tensor: Tensor) -> bool:
    """Whether work on a tensor is being captured in a CUDA graph; during capture its values
    cannot be read, and new allocations belong to the graph."""
    # (Stand-ins for GPU tensors may exist without a GPU.)
    return (not is_compiling() and tensor.is_cuda and torch.cuda.is_initialized()
            and torch.cuda.is_current_stream_capturing())


def in_inference_mode() -> bool:
    """Under ``torch.inference_mode``, in eager mode."""
    # (Strict exports of torch before 2.7 do not accept the question.)
    return not is_compiling() and torch.is_inference_mode_enabled()


def in_torch_func() -> bool:
    """Inside ``torch.func``, whose transforms do not support the derivatives of our operators.

    False if this torch cannot tell: then the operators are called, and torch raises an error.
    """
    return not is_compiling() and _peek_transforms() not in (None, 'unknown')


_tracing_state = torch._C._get_tracing_state
_forward_ad = torch.autograd.forward_ad


def eager_refusal() -> Optional[str]:
    """Why an operator of our own cannot replace torch's now, or None.

    Ours have no rules for graphs that are being recorded, ``torch.func`` (vmap, jvp, ...),
    forward-mode differentiation, and a ``TorchDispatchMode``: torch's FLOP counter, for example,
    knows standard operators only. Layers ask this before every shortcut.
    """
    # (Compilers other than dynamo use dispatch modes, which are checked below.)
    if (torch._dynamo.is_compiling() if _is_dynamo_compiling is None
            else _is_dynamo_compiling()) or _tracing_state() is not None:
        return 'a graph is being recorded'
    if _peek_transforms() is not None or getattr(_forward_ad, '_current_level', 0) >= 0:
        return 'a transform of torch.func or forward-mode differentiation is under way'
    if _count_modes() > 0:
        return 'a TorchDispatchMode looks on, which may know standard operators only'
    return None


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Context in which ``torch.jit.trace`` records nothing."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def is_symbolic(value: Any) -> bool:
    """Whether it is a ``torch.fx`` proxy: operations on it are recorded, and its shape is not
    known."""
    return isinstance(value, Proxy)
