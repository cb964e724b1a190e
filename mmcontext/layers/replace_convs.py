"""Replacing the convolutions of any network with layers of this package."""
import inspect
import re
from typing import Callable, List, Union

from torch import nn

from mmcontext.registry import MODELS

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
Where = Union[str, Callable[[str, nn.Module], bool], None]


def _wanted(where: Where, dim: int) -> Callable[[str, nn.Module], bool]:
    if callable(where):
        return where
    pattern = re.compile(where or '')

    def wanted(name: str, conv: nn.Module) -> bool:
        return (conv.kernel_size == (3, ) * dim and conv.groups == 1
                and pattern.search(name) is not None)

    return wanted


def _own_kernel_size(cls: type):
    """The default of a layer, or of the class whose constructor it extends."""
    for base in cls.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get('kernel_size')
        if parameter is not None:
            return parameter.default
    return None


def replace_convs(model: nn.Module, cfg: dict, where: Where = None) -> List[str]:
    """Replace the 3x3 convolutions of any network, in place.

    The layers start untrained. If ``cfg`` names no kernel size they have their own default (7 for
    involution and C-volution); the sizes of the feature maps do not change.

    Args:
        model: A network from torchvision, timm or your own code.
        cfg: The layer and its arguments other than channels, stride and dilation, e.g.
            ``dict(type='CVolution2d')``. Layers with one or three axes replace convolutions with
            as many.
        where: Regular expression searched for in the names of ungrouped 3x3 convolutions, such as
            ``'layer[34]'``; or a function of name and module, which then is the only criterion,
            whatever the groups and kernel size. None for every ungrouped 3x3 convolution.

    Returns:
        The names of the modules that were replaced, in order.

    Raises:
        ValueError: No convolution was chosen, or the layer cannot replace one of those chosen; the
            model is then unchanged.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise ValueError("cfg must be a dict with the key 'type', such as "
                         f"dict(type='CVolution2d'), got {cfg!r}")
    cfg = dict(cfg)
    kind = cfg.pop('type')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        raise ValueError(f'cfg names no layer of this package: {kind!r}')
    dim = getattr(cls, 'dim', 2)
    size = cfg.pop('kernel_size', _own_kernel_size(cls))
    wanted, layers = _wanted(where, dim), {}
    for name, conv in model.named_modules():
        if not isinstance(conv, _CONVS[dim]) or not name or not wanted(name, conv):
            continue
        groups = {} if conv.groups == 1 else {'groups': conv.groups}
        try:
            layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size,
                        stride=conv.stride, padding=conv.padding, dilation=conv.dilation,
                        bias=conv.bias is not None, kernel_size_override=size,
                        **{**groups, **cfg})
        except ValueError as error:
            raise ValueError(f'{name} cannot be a {cls.__name__}: {error}; leave it out with '
                             'where=') from error
        layers[name] = layer.to(conv.weight.device, conv.weight.dtype)
    if not layers:
        raise ValueError(f'no convolution of the network was chosen by where={where!r}')
    for name, layer in layers.items():
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, layer.train(model.training))
    return list(layers)
