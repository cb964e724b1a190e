"""Whether calling a module does nothing but compute with its tensors.

Layers take shortcuts that bypass their submodules. A submodule that is hooked, pruned,
reparametrised or replaced, or whose forward has been replaced, is called nevertheless.
"""
from typing import Optional

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as _module

# If torch drops such a name, modules are called as if there were hooks.
GLOBAL_HOOKS = [getattr(_module, f'_global_{kind}_hooks', ('unknown', ))
                 for kind in ('forward', 'forward_pre', 'backward', 'backward_pre')]


def has_global_hooks() -> bool:
    """Whether hooks are registered on all modules."""
    return any(GLOBAL_HOOKS)


def is_touched(module: Optional[nn.Module]) -> bool:
    """Whether a module is hooked, or calling it has been changed.

    Pruning, spectral and weight norm are hooks; activation checkpointing replaces ``forward``.
    Parametrisations change the class, which the caller has to check.
    """
    return module is not None and (
        bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
             or module._backward_pre_hooks) or 'forward' in module.__dict__)


def as_one_node(module: nn.Module, x: Proxy) -> Proxy:
    """Record the call of a module as one node of the graph that ``torch.fx`` is tracing.

    Raises:
        ValueError: The module is itself the root of the trace.
    """
    path = x.tracer.path_of_module(module)
    if not path:
        raise ValueError(f'{type(module).__name__} is one node in a graph of torch.fx: trace a '
                         'module that contains it, such as nn.Sequential(layer)')
    return x.tracer.create_proxy('call_module', path, (x, ), {})


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether a module is of exactly that class, and not calling it would go unnoticed."""
    # (Inlines all of the above, because it runs in every layer.)
    return type(module) is kind and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or 'forward' in module.__dict__ or any(GLOBAL_HOOKS))


def call_or_pass(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``; an untouched identity is skipped."""
    return x if type(x) is Tensor and is_plain(module, nn.Identity) else module(x)
