import os.path as osp
import re

import pytest
import torch

pytest.importorskip('mmdet')

from mmcontext.converters import ARCHITECTURES, convert_checkpoint  # noqa: E402
from mmcontext.converters.convert import build_for_conversion  # noqa: E402
from mmcontext.converters.detectors import DETECTORS  # noqa: E402
from mmcontext.utils.errors import UserError  # noqa: E402

CONFIGS = osp.join(osp.dirname(__file__), '..', '..', 'configs')
# Names here -> names in the authors' code.
BLOCK = [(r'\.norm2\.0\.', '.bn2.'), (r'\.norm3\.', '.bn3.'), (r'\.expand\.', '.conv3.'),
         (r'\.shortcut\.', '.downsample.'), (r'(layer\d\.\d+)\.reduce\.0\.', r'\1.conv1.'),
         (r'(layer\d\.\d+)\.reduce\.1\.', r'\1.bn1.'), (r'\.spatial\.', '.conv2.')]
SITES = [(r'mask_head\.convs\.(\d)\.conv\.(?=reduce|span|gate)', r'mask_head.convs.\1.0.'),
         (r'(fpn_convs\.\d|rpn_conv)\.conv\.(?=reduce|span|gate)', r'\1.')]
OPERATOR = {
    'rednet': [(r'\.reduce\.0\.', '.conv1.conv.'), (r'\.reduce\.1\.', '.conv1.bn.'),
               (r'\.span\.', '.conv2.conv.')],
    'cednet': [(r'\.reduce\.', '.conv1.'), (r'\.span\.', '.conv2.0.'),
               (r'\.gate\.', '.conv_q.')],
}


def authors_state(arch):
    """The entries of an mmdet-2 checkpoint of a detector, each with its own values."""
    torch.manual_seed(0)
    net = 'rednet' if 'rednet' in arch else 'cednet'
    state = {}
    for key, value in build_for_conversion(osp.join(CONFIGS, DETECTORS[arch][0])) \
            .state_dict().items():
        for pattern, name in [*BLOCK, *SITES, *OPERATOR[net]]:
            key = re.sub(pattern, name, key)
        state[key] = torch.randn(value.shape).to(value.dtype)
    return state


@pytest.mark.parametrize('arch', [
    'faster_rcnn_rednet50_fpn', 'retinanet_rednet50_neck_fpn', 'mask_rcnn_rednet50_neck_fpn_head',
    'mask_rcnn_cednet50_neck_fpn_head'])
def test_detectors_of_mmdet_2_load_strictly(arch, tmp_path):
    state = authors_state(arch)
    torch.save({'state_dict': state, 'meta': {}, 'optimizer': {}}, tmp_path / 'old.pth')
    convert_checkpoint(str(tmp_path / 'old.pth'), str(tmp_path / 'new.pth'), arch, CONFIGS)
    converted = torch.load(tmp_path / 'new.pth', weights_only=True)
    model = build_for_conversion(osp.join(CONFIGS, converted['meta']['config']))
    model.load_state_dict(converted['state_dict'], strict=True, assign=True)
    reduce = 'conv1.0' if 'cednet' in arch else 'conv1.conv'
    pairs = {'neck.lateral_convs.1.conv.weight': model.neck.lateral_convs[1].conv.weight,
             f'backbone.layer2.1.conv2.{reduce}.weight':
                 model.backbone.layer2[1].spatial.reduce[0].weight}
    if '_neck' in arch:
        pairs[f'neck.fpn_convs.2.{reduce}.weight'] = model.neck.fpn_convs[2].conv.reduce[0].weight
    if 'retinanet' in arch:
        pairs['neck.fpn_convs.4.conv.weight'] = model.neck.fpn_convs[4].conv.weight
        pairs['bbox_head.cls_convs.3.conv.bias'] = model.bbox_head.cls_convs[3].conv.bias
    if '_head' in arch:
        pairs[f'rpn_head.rpn_conv.{reduce}.weight'] = model.rpn_head.rpn_conv.conv.reduce[0].weight
        mask_convs = model.roi_head.mask_head.convs
        pairs[f'roi_head.mask_head.convs.3.0.{reduce}.weight'] = mask_convs[3].conv.reduce[0].weight
    if 'cednet' in arch:
        pairs['neck.fpn_convs.0.conv_q.weight'] = model.neck.fpn_convs[0].conv.gate.weight
        assert model.neck.fpn_convs[0].conv.gate.groups == 4
        assert model.backbone.layer1[0].spatial.gate.groups == 16
    for key, parameter in pairs.items():
        assert torch.equal(state[key], parameter), key


def test_the_wrong_neck_is_refused(tmp_path):
    torch.save(authors_state('faster_rcnn_rednet50_neck_fpn'), tmp_path / 'old.pth')
    with pytest.raises(UserError, match=r'unknown: neck\.fpn_convs.* missing: neck\.fpn_convs'):
        convert_checkpoint(str(tmp_path / 'old.pth'), str(tmp_path / 'new.pth'),
                           'faster_rcnn_rednet50_fpn', CONFIGS)
    assert not (tmp_path / 'new.pth').exists()


def test_every_config_exists():
    assert len(DETECTORS) == 14 and DETECTORS.keys() <= ARCHITECTURES.keys()
    for config, _ in DETECTORS.values():
        assert osp.isfile(osp.join(CONFIGS, config)), config


def test_an_imagenet_checkpoint_initialises_a_detector(tmp_path):
    """As in the COCO configs: init_cfg with the prefix of the backbone."""
    from mmengine.registry import MODELS
    backbone = dict(type='mmcontext.CedNet', depth=26, base_channels=32,
                    out_indices=(0, 1, 2, 3))
    source = MODELS.build(backbone)
    path = str(tmp_path / 'imagenet.pth')
    state = {f'backbone.{key}': torch.rand_like(value, dtype=torch.float)
             for key, value in source.state_dict().items()}
    torch.save({'state_dict': {**state, 'head.fc.weight': torch.zeros(1)}}, path)
    detector_backbone = MODELS.build(dict(
        **backbone, frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.')))
    detector_backbone.init_weights()
    for key, value in detector_backbone.state_dict().items():
        assert torch.equal(value, state[f'backbone.{key}'].to(value.dtype)), key
