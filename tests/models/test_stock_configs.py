"""The operators in stock OpenMMLab configs, without custom_imports.

Each package runs in a fresh interpreter, so that nothing but the prefix of a type can have
imported mmcontext.
"""
import importlib.util
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from mmengine.utils import digit_version

PRELUDE = '''
import sys, torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
import {package}
init_default_scope('{package}')
stock = get_config('{package}::{path}').model
assert 'mmcontext' not in sys.modules

def build(**changes):
    config = stock.copy()
    for key, value in changes.items():
        config[key] = value
    return MODELS.build(config).train()

def total(losses):
    return sum(v if torch.is_tensor(v) else sum(v) for k, v in losses.items() if 'loss' in k)

def check_dcn(layer, **changes):
    backbone = stock.backbone.copy()
    backbone.update(dcn=dict(type='mmcontext.' + layer), init_cfg=None, frozen_stages=-1,
                    stage_with_dcn=(False, True, True, True), norm_cfg=dict(type='BN'))
    model = build(backbone=backbone, **changes).backbone
    assert type(model.layer2[1].conv2).__name__ == layer
    sum(f.mean() for f in model(torch.randn(2, 3, 64, 64))).backward()

DCN = ['CoConv2d', 'PyConv2d', 'CoT2d', 'Involution2d', 'CVolution2d']
'''

MMDET = '''
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
model = build(backbone=dict(type='mmcontext.CedNet', depth=26, out_indices=(0, 1, 2, 3),
                            frozen_stages=1, norm_eval=True, init_cfg=None))
sample = DetDataSample(metainfo=dict(img_shape=(64, 64), batch_input_shape=(64, 64),
                                     pad_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1)))
sample.gt_instances = InstanceData(bboxes=torch.tensor([[8., 8., 40., 48.]]),
                                   labels=torch.tensor([1]))
total(model.loss(torch.randn(1, 3, 64, 64), [sample])).backward()
assert model.backbone.layer4[0].spatial.span.weight.grad.any()
assert model.backbone.layer1[0].spatial.span.weight.grad is None
for layer in DCN:
    check_dcn(layer)
print('ran')
'''

MMSEG = '''
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
head = dict(type='FCNHead', in_channels=2048, channels=16, num_classes=2, in_index=3)
changes = dict(pretrained=None, auxiliary_head=None, decode_head=head,
               data_preprocessor=dict(type='SegDataPreProcessor'))
for name in ('CoResNet', 'PyConvResNet', 'CoTNet', 'RedNet', 'CedNet'):
    model = build(backbone=dict(type='mmcontext.' + name, depth=50, out_indices=(0, 1, 2, 3),
                                output_stride=8), **changes)
    image = torch.randn(2, 3, 64, 64)
    assert model.extract_feat(image)[-1].shape == (2, 2048, 8, 8)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 64, 64).long()))] * 2
    total(model.loss(image, samples)).backward()
for layer in DCN:
    check_dcn(layer, **changes)
print('ran')
'''

MMPRETRAIN = '''
from mmpretrain.structures import DataSample
model = build(backbone=dict(type='mmcontext.CoTNet', depth=50))
samples = [DataSample().set_gt_label(i) for i in (3, 5)]
total(model.loss(torch.randn(2, 3, 64, 64), samples)).backward()
print('ran')
'''

ABSENT = '''
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmdet', 'mmseg'):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from mmengine.registry import MODELS
for name, package in (('ContextRPNHead', 'mmdet'), ('PyConvHead', 'mmsegmentation')):
    try:
        MODELS.build(dict(type='mmcontext.' + name))
    except ImportError as error:
        assert f'needs the package {package},' in str(error), error
    else:
        raise AssertionError(name)
MODELS.build(dict(type='mmcontext.CedNet', depth=26))
print('ran')
'''


def run(code):
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True,
                            text=True)
    assert result.stdout.strip().endswith('ran'), result.stderr[-3000:]


@pytest.mark.parametrize('package, path, code', [
    ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', MMDET),
    ('mmseg', 'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', MMSEG),
    ('mmpretrain', 'resnet/resnet50_8xb32_in1k.py', MMPRETRAIN),
], ids=['mmdet', 'mmseg', 'mmpretrain'])
def test_backbones_and_dcn_in_stock_configs(package, path, code):
    pytest.importorskip(package)
    if package == 'mmpretrain' and importlib.util.find_spec('transformers') and digit_version(
            metadata.version('transformers')) >= digit_version('5'):
        pytest.skip('beside transformers 5 mmpretrain needs mmcontext to be imported first')
    run(PRELUDE.format(package=package, path=path) + code)


def test_missing_package_is_named():
    run(ABSENT)


def test_operator_in_plain_torch():
    from mmcontext.layers import CVolution2d
    net = torch.nn.Sequential(CVolution2d(32, 32), torch.nn.ReLU(), CVolution2d(32, 64, stride=2))
    assert net(torch.randn(1, 32, 16, 16)).shape == (1, 64, 8, 8)
