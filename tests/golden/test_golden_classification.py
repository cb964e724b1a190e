"""The published networks, against tensors computed by the authors' own code.

The tensors are not part of this repository; MMCONTEXT_GOLDEN names their folder.
"""
import json
import os
import os.path as osp

import numpy as np
import pytest
import torch
from golden.reference import (
    authors_state_dict,
    golden_input,
    make_deterministic,
    relative_error,
)
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmcontext.converters import ARCHITECTURES, convert_checkpoint

GOLDEN = os.environ.get('MMCONTEXT_GOLDEN', '')
CONFIGS = osp.join(osp.dirname(__file__), '..', '..', 'configs')
NAMES = [name for name in ARCHITECTURES if osp.isfile(osp.join(GOLDEN, f'{name}.npz'))
         and not name.startswith(('ccnn', 'pyconvsegnet'))]

pytestmark = pytest.mark.skipif(not GOLDEN, reason='MMCONTEXT_GOLDEN names no folder')


@pytest.mark.parametrize('name', NAMES)
def test_logits_equal_the_authors(name, tmp_path):
    with open(osp.join(GOLDEN, f'{name}.json')) as file:
        facts = json.load(file)
    expected = np.load(osp.join(GOLDEN, f'{name}.npz'))
    torch.save(authors_state_dict(facts['keys']), tmp_path / 'authors.pth')
    convert_checkpoint(str(tmp_path / 'authors.pth'), str(tmp_path / 'ours.pth'), name, CONFIGS)
    config = Config.fromfile(osp.join(CONFIGS, ARCHITECTURES[name].config))
    init_default_scope('mmpretrain')
    model = MODELS.build({**config.model, 'train_cfg': None})
    checkpoint = torch.load(tmp_path / 'ours.pth', weights_only=True)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    assert sum(p.numel() for p in model.parameters()) == facts['params']
    make_deterministic(model)
    x = golden_input(facts['input_shape'])
    for mode in ('train', 'eval'):
        model.train(mode == 'train')
        with torch.no_grad():
            logits = model(x, mode='tensor')
        reference = torch.from_numpy(expected[f'{mode}_logits'])
        if not torch.isfinite(reference).all():
            assert mode == 'eval', 'only eval logits may overflow'
            continue
        # float64 through a whole network, which amplifies rounding.
        assert relative_error(logits, reference) < 1e-6
