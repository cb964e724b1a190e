"""Small continuous convolutions for several tests."""
import copy

import torch

from mmcontext import layers

SIZES = {1: (12, ), 2: (9, 7), 3: (5, 4, 6)}
KERNEL = dict(hidden_channels=6, num_layers=2, omega_0=2.)
FAMILIES = ['CKConv', 'SeparableCKConv', 'FlexConv', 'SeparableFlexConv']


def build(name, dim, *args, **kwargs):
    kwargs.setdefault('kernel_cfg', KERNEL)
    if 'Flex' in name:
        # Wide enough that kernels with few taps keep some.
        kwargs.setdefault('mask_cfg', dict(init=0.5))
    return getattr(layers, f'{name}{dim}d')(*args, **kwargs).double()


def sample(dim, channels=4):
    return torch.randn(2, channels, *SIZES[dim], dtype=torch.float64)


def fresh_output(layer, x):
    layer = copy.deepcopy(layer)
    layer.cache = False
    return layer(x)
