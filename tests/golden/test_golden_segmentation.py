"""PyConvSegNet, against losses and logits computed by the authors' own code."""
import json
import os
import os.path as osp

import numpy as np
import pytest
import torch
from golden.reference import authors_state_dict, golden_input, make_deterministic, relative_error
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from mmcontext.converters import ARCHITECTURES, convert_checkpoint

GOLDEN = os.environ.get('MMCONTEXT_GOLDEN', '')
CONFIGS = osp.join(osp.dirname(__file__), '..', '..', 'configs')
NAMES = [name for name in ARCHITECTURES if osp.isfile(osp.join(GOLDEN, f'{name}_os8.npz'))]

pytestmark = pytest.mark.skipif(not GOLDEN, reason='MMCONTEXT_GOLDEN names no folder')


def samples(shape):
    from mmseg.structures import SegDataSample
    for _ in range(shape[0]):
        size = tuple(shape[2:])
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
        yield sample


@pytest.mark.parametrize('name', NAMES)
def test_losses_and_logits_equal_the_authors(name, tmp_path):
    with open(osp.join(GOLDEN, f'{name}_os8.json')) as file:
        facts = json.load(file)
    expected = np.load(osp.join(GOLDEN, f'{name}_os8.npz'))
    torch.save(authors_state_dict(facts['keys']), tmp_path / 'authors.pth')
    convert_checkpoint(str(tmp_path / 'authors.pth'), str(tmp_path / 'ours.pth'), name, CONFIGS)
    checkpoint = torch.load(tmp_path / 'ours.pth', weights_only=True)
    config = Config.fromfile(osp.join(CONFIGS, 'pyconv', f'{name}_cityscapes.py'))
    # As for the authors' tensors: whole images, one process, the plain auxiliary loss.
    config.merge_from_dict({
        'model.test_cfg': dict(mode='whole'),
        'model.auxiliary_head.loss_decode.loss_weight': 1.0,
    })
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        config.model[part].norm_cfg.type = 'BN'
    init_default_scope('mmseg')
    model = MODELS.build(config.model)
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    assert sum(p.numel() for p in model.parameters()) == facts['params']
    make_deterministic(model)
    x = golden_input(facts['input_shape'])
    with torch.no_grad():
        losses = model.train()(x, list(samples(x.shape)), mode='loss')
        results = model.eval()(x, list(samples(x.shape)), mode='predict')
    actual = torch.stack([losses['decode.loss_ce'], losses['aux.loss_ce']])
    # float64 through a whole network, which amplifies rounding.
    assert relative_error(actual, torch.from_numpy(expected['train_logits'])) < 1e-6
    logits = torch.stack([r.seg_logits.data for r in results])[:, :, ::7, ::7]
    assert relative_error(logits, torch.from_numpy(expected['eval_logits'])) < 1e-6
