"""Whether calling a module is no more than computing with its tensors.

Layers take short cuts past the modules they are made of. One that is hooked, pruned,
reparametrised or replaced, or whose forward is, gets called.
"""
from typing import Optional

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as _module

# Where torch has no such name any more, modules are called, as if there were hooks.
GLOBAL_HOOKS = [getattr(_module, f'_global_{kind}_hooks', ('unknown', ))
                 for kind in ('forward', 'forward_pre', 'backward', 'backward_pre')]


def has_global_hooks() -> bool:
    """Whether hooks are registered on all modules."""
    return any(GLOBAL_HOOKS)


def is_touched(module: Optional[nn.Module]) -> bool:
    """Whether anybody looks into a module or has changed what calling it does.

    Pruning, spectral and weight norm are hooks; activation checkpointing replaces ``forward``.
    Parametrisations change the class, which is for the caller to look at.
    """
    return module is not None and (
        bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
             or module._backward_pre_hooks) or 'forward' in module.__dict__)


def as_one_node(module: nn.Module, x: Proxy) -> Proxy:
    """The call of a module in the graph that ``torch.fx`` is recording, without looking inside.

    Raises:
        ValueError: The module is all that is being traced.
    """
    path = x.tracer.path_of_module(module)
    if not path:
        raise ValueError(f'{type(module).__name__} is one node in a graph of torch.fx: trace a '
                         'module that contains it, such as nn.Sequential(layer)')
    return x.tracer.create_proxy('call_module', path, (x, ), {})


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether a module is of that very class and nobody would notice that it is not called."""
    # (All of the above in one call: this runs in every layer.)
    return type(module) is kind and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or 'forward' in module.__dict__ or any(GLOBAL_HOOKS))


def call_or_pass(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``; an identity that nobody looks into is passed over."""
    return x if type(x) is Tensor and is_plain(module, nn.Identity) else module(x)
