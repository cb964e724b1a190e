"""The continuous networks, against tensors computed by the authors' own code.

The tensors are not part of this repository; MMCONTEXT_GOLDEN names their folder.
"""
import json
import os
import os.path as osp
import zlib
from glob import glob

import numpy as np
import pytest
import torch
from golden.reference import (
    filled_value,
    golden_input,
    make_deterministic,
    relative_error,
)
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmcontext.converters import convert_checkpoint
from mmcontext.layers.ckconv import CKConvNd

GOLDEN = os.environ.get('MMCONTEXT_GOLDEN', '')
CONFIGS = osp.join(osp.dirname(__file__), '..', '..', 'configs')
NAMES = sorted(osp.basename(path)[:-4] for path in glob(osp.join(GOLDEN, 'ccnn_*.npz'))) \
    if GOLDEN else []

pytestmark = pytest.mark.skipif(not GOLDEN, reason='MMCONTEXT_GOLDEN names no folder')


def continuous_value(key, shape, config):
    """Values of the entries specific to continuous networks, else the common ones."""
    conv = config.model.backbone.conv_cfg
    r = np.random.RandomState(zlib.crc32(key.encode()) & 0x7fffffff)
    leaf = key.rsplit('.', 1)[-1]
    constants = dict(mask_width_param=conv.mask_cfg.init, mask_mean_param=float(conv.causal),
                     mask_threshold=0.1)
    if leaf in constants:
        return torch.full(shape, constants[leaf])
    if leaf == 'train_length':
        return torch.full(shape, 784 if conv.kernel_size == 'same' else conv.kernel_size).int()
    if leaf == 'initialized':
        return torch.ones(shape, dtype=torch.bool)
    if leaf == 'num_batches_tracked':
        return torch.zeros(shape, dtype=torch.long)
    if leaf == 'mu':
        value = r.uniform(-0.2, 0.2, shape) + (0.8 if shape[-1] == 1 else 0.)
    elif leaf == 'gamma':
        value = r.uniform(1, 4, shape)
    elif '.filters.' in key and key.endswith('linear.weight'):
        value = 6 * r.standard_normal(shape)
    elif key.endswith('Kernel.output_linear.weight'):
        value = 0.05 * r.standard_normal(shape)
    else:
        return filled_value(key, shape)
    return torch.from_numpy(value).float()


@pytest.mark.parametrize('method', ['fft', 'direct', 'auto'])
@pytest.mark.parametrize('name', NAMES)
def test_logits_equal_the_authors(name, method, tmp_path):
    with open(osp.join(GOLDEN, f'{name}.json')) as file:
        facts = json.load(file)
    expected = np.load(osp.join(GOLDEN, f'{name}.npz'))
    config = Config.fromfile(osp.join(CONFIGS, 'ccnn', f'{name}.py'))
    # The published networks differ in the initial mask; the tensors were computed with these.
    config.model.backbone.conv_cfg.mask_cfg.init = 0.75 if name == 'ccnn_4_140_cifar10' else 0.075
    state = {key: continuous_value(key, tuple(shape), config)
             for key, shape in facts['keys'].items()}
    torch.save(state, tmp_path / 'authors.pth')
    convert_checkpoint(str(tmp_path / 'authors.pth'), str(tmp_path / 'ours.pth'), 'ccnn', CONFIGS)
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    assert sum(p.numel() for p in model.parameters()) == facts['params']
    model.load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'], strict=True)
    make_deterministic(model)
    for module in model.modules():
        if isinstance(module, CKConvNd):
            module.method = method
    x = golden_input(facts['input_shape'])
    with torch.no_grad():
        for mode in ('train', 'eval'):
            logits = model.train(mode == 'train').head(model.extract_feat(x))
            # float64 through a whole network, by FFT or directly.
            assert relative_error(logits, torch.from_numpy(expected[f'{mode}_logits'])) < 1e-9
