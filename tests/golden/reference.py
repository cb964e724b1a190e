"""The weights and inputs of the golden tensors, which depend only on names and shapes."""
import zlib

import numpy as np
import torch


def filled_value(key, shape):
    """The value of one state-dict entry of the authors' network, float32."""
    r = np.random.RandomState(zlib.crc32(key.encode()) & 0x7fffffff)
    if key.endswith('running_var'):
        value = r.uniform(0.5, 1.5, shape)
    elif key.endswith('running_mean'):
        value = 0.1 * r.standard_normal(shape)
    elif len(shape) <= 1 and key.endswith('weight'):
        value = r.uniform(0.5, 1.5, shape)
    elif key.endswith('bias'):
        value = 0.1 * r.standard_normal(shape)
    else:
        value = r.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value)).float()


def authors_state_dict(keys):
    """State dict of the authors' network from {key: shape}."""
    return {
        key: torch.zeros(shape, dtype=torch.long) if key.endswith('num_batches_tracked') else
        filled_value(key, shape)
        for key, shape in keys.items()
    }


def golden_input(shape):
    x = np.random.RandomState(0).standard_normal(shape)
    return torch.from_numpy(x).float().double()


def make_deterministic(model):
    """BatchNorm momentum 1, dropout and drop path off, float64."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
        elif isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.
        elif type(module).__name__ == 'DropPath':
            module.drop_prob = 0.
    return model.double()


def relative_error(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())
