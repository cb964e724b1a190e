import os.path as osp

import pytest
import torch

from mmcontext.converters import convert_checkpoint
from mmcontext.converters.convert import build_for_conversion
from mmcontext.utils.errors import CheckpointError

CONFIGS = osp.join(osp.dirname(__file__), '..', '..', 'configs')

pytest.importorskip('mmseg')


def norm(state, name, width):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
        state[f'{name}.{leaf}'] = torch.rand(width)
    state[f'{name}.num_batches_tracked'] = torch.tensor(3)


def backbone(pyramidal):
    """The authors' entries of a ResNet-50 or a PyConvResNet-50 inside PyConvSegNet."""
    state = {'layer0.0.weight': torch.rand(64, 3, 7, 7)}
    norm(state, 'layer0.1', 64)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        levels = 4 - stage if pyramidal else 1
        splits = {4: (4, 4, 4, 4), 3: (4, 4, 2), 2: (2, 2), 1: (1, )}[levels]
        for block in range(blocks):
            name = f'layer{stage + 1}.{block}'
            state[f'{name}.conv1.weight'] = torch.rand(width, channels, 1, 1)
            norm(state, f'{name}.bn1', width)
            for level, share in enumerate(splits):
                key = f'conv2.conv2_{level + 1}' if levels > 1 else 'conv2'
                state[f'{name}.{key}.weight'] = torch.rand(
                    width // share, width // (1, 4, 8, 16)[level], 3 + 2 * level, 3 + 2 * level)
            norm(state, f'{name}.bn2', width)
            state[f'{name}.conv3.weight'] = torch.rand(4 * width, width, 1, 1)
            norm(state, f'{name}.bn3', 4 * width)
            if block == 0:
                # A pool comes first if the pyramidal network has a stride.
                first = 1 if pyramidal else 0
                state[f'{name}.downsample.{first}.weight'] = torch.rand(4 * width, channels, 1, 1)
                norm(state, f'{name}.downsample.{first + 1}', 4 * width)
            channels = 4 * width
    return state


def heads(classes):
    state = {}
    for branch, start in (('local_context.layers', 0), ('global_context.features', 1)):
        name = f'pyconvhead.{branch}'
        state[f'{name}.{start}.weight'] = torch.rand(512, 2048, 1, 1)
        norm(state, f'{name}.{start + 1}', 512)
        for level, groups in enumerate((1, 4, 8, 16)):
            state[f'{name}.{start + 3}.conv2_{level + 1}.weight'] = torch.rand(
                128, 512 // groups, 3 + 2 * level, 3 + 2 * level)
        norm(state, f'{name}.{start + 4}', 512)
        state[f'{name}.{start + 6}.weight'] = torch.rand(512, 512, 1, 1)
        norm(state, f'{name}.{start + 7}', 512)
    state['pyconvhead.merge_context.features.0.weight'] = torch.rand(256, 1024, 3, 3)
    norm(state, 'pyconvhead.merge_context.features.1', 256)
    state['aux.0.weight'] = torch.rand(256, 1024, 3, 3)
    norm(state, 'aux.1', 256)
    for name in ('aux.4', 'cls.1'):
        state[f'{name}.weight'] = torch.rand(classes, 256, 1, 1)
        state[f'{name}.bias'] = torch.rand(classes)
    return state


@pytest.mark.parametrize('arch, classes, stem', [
    ('pyconvsegnet_resnet50', 7, 'backbone.conv1'),
    ('pyconvsegnet_pyconvresnet50', 19, 'backbone.stem.0.conv'),
])
def test_converts_strictly_for_any_number_of_classes(arch, classes, stem, tmp_path):
    authors = {**backbone('pyconvresnet' in arch), **heads(classes)}
    torch.save({'epoch': 100, 'state_dict': {f'module.{k}': v for k, v in authors.items()}},
               tmp_path / 'authors.pth')
    convert_checkpoint(str(tmp_path / 'authors.pth'), str(tmp_path / 'ours.pth'), arch, CONFIGS)
    converted = torch.load(tmp_path / 'ours.pth', weights_only=True)
    state = converted['state_dict']
    meta = converted['meta']
    assert meta['num_classes'] == classes
    data = {7: 'ade20k', 19: 'cityscapes'}[classes]
    assert meta['config'] == f'pyconv/{arch}_{data}.py'
    model = build_for_conversion(osp.join(CONFIGS, meta['config']),
                                 None if classes == 19 else classes)
    model.load_state_dict(state, strict=True, assign=True)
    for ours, theirs in {
            f'{stem}.weight': 'layer0.0.weight',
            'backbone.layer3.0.' + ('shortcut.1' if 'pyconvresnet' in arch else 'downsample.0') +
            '.weight': 'layer3.0.downsample.' + ('1' if 'pyconvresnet' in arch else '0') +
            '.weight',
            'decode_head.global_context.1.conv.convs.3.weight':
                'pyconvhead.global_context.features.4.conv2_4.weight',
            'decode_head.local_context.2.bn.running_var':
                'pyconvhead.local_context.layers.7.running_var',
            'decode_head.conv_seg.bias': 'cls.1.bias',
            'auxiliary_head.conv_seg.bias': 'aux.4.bias',
    }.items():
        assert torch.equal(state[ours], authors[theirs]), ours


def test_backbone_of_the_other_kind_is_refused(tmp_path):
    torch.save({**backbone(True), **heads(19)}, tmp_path / 'authors.pth')
    with pytest.raises(CheckpointError, match=r'layer1\.0\.conv2\.conv2_1'):
        convert_checkpoint(str(tmp_path / 'authors.pth'), str(tmp_path / 'ours.pth'),
                           'pyconvsegnet_resnet50', CONFIGS)
    assert not (tmp_path / 'ours.pth').exists()
