import argparse
import os.path as osp
import subprocess
import sys

import pytest
import torch

from mmcontext.converters import ARCHITECTURES, convert_checkpoint
from mmcontext.converters.convert import build_for_conversion
from mmcontext.utils.errors import UserError

ROOT = osp.join(osp.dirname(__file__), '..', '..')
CONFIGS = osp.join(ROOT, 'configs')


@pytest.fixture(scope='module')
def coresnet50():
    """The authors' entries of CoResNet-50, with the names of their code."""
    state = {}

    def norm(name, width):
        for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
            state[f'{name}.{leaf}'] = torch.rand(width)
        state[f'{name}.num_batches_tracked'] = torch.tensor(3)

    state['conv1.weight'] = torch.rand(64, 3, 7, 7)
    norm('bn1', 64)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, levels = 64 * 2**stage, 4 - stage
        splits = {4: (4, 4, 4, 4), 3: (2, 4, 4), 2: (2, 2), 1: (1, )}[levels]
        for block in range(blocks):
            name = f'layer{stage + 1}.{block}'
            state[f'{name}.conv1.weight'] = torch.rand(width, channels, 1, 1)
            norm(f'{name}.bn1', width)
            for level, share in enumerate(splits, 1):
                key = f'conv2.conv2_{level}' if levels > 1 else 'conv2'
                state[f'{name}.{key}.weight'] = torch.rand(width // share, width, 3, 3)
            norm(f'{name}.bn2', width)
            state[f'{name}.conv3.weight'] = torch.rand(4 * width, width, 1, 1)
            norm(f'{name}.bn3', 4 * width)
            if block == 0:
                state[f'{name}.downsample.0.weight'] = torch.rand(4 * width, channels, 1, 1)
                norm(f'{name}.downsample.1', 4 * width)
            channels = 4 * width
    state['fc.weight'], state['fc.bias'] = torch.rand(1000, 2048), torch.rand(1000)
    return state


WRAPPINGS = {
    'bare': lambda state: state,
    'module': lambda state: {f'module.{k}': v for k, v in state.items()},
    'state_dict': lambda state: {'state_dict': state, 'epoch': 90, 'best_acc1': 77.},
    'mmcls': lambda state: {'state_dict': {
        (f'head.{k}' if k.startswith('fc.') else f'backbone.{k}'): v for k, v in state.items()
    }},
    'timm': lambda state: {'model': {'state_dict_ema': {
        f'_orig_mod.module.{k}': v for k, v in state.items()}}, 'args': argparse.Namespace(lr=1)},
    'uncounted': lambda state: {k: v for k, v in state.items() if 'num_batches' not in k},
}


@pytest.mark.parametrize('wrap', WRAPPINGS.values(), ids=WRAPPINGS)
def test_every_wrapping_loads_strictly(wrap, coresnet50, tmp_path):
    torch.save(wrap(coresnet50), tmp_path / 'source.pth')
    convert_checkpoint(str(tmp_path / 'source.pth'), str(tmp_path / 'new.pth'), 'coresnet50',
                       CONFIGS)
    converted = torch.load(tmp_path / 'new.pth', weights_only=True)
    model = build_for_conversion(osp.join(CONFIGS, converted['meta']['config']))
    model.load_state_dict(converted['state_dict'], strict=True, assign=True)
    block = model.backbone.layer2[1]
    assert torch.equal(block.spatial.convs[2].weight, coresnet50['layer2.1.conv2.conv2_3.weight'])
    assert torch.equal(block.norm3.running_var, coresnet50['layer2.1.bn3.running_var'])
    assert torch.equal(model.head.fc.bias, coresnet50['fc.bias'])


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize('spoil, message', [
    (without('layer3.2.bn2.bias'), 'missing: backbone.layer3.2.norm2.0.bias'),
    (lambda s: {**s, 'layer1.0.conv9.weight': torch.zeros(1)}, 'unknown: layer1.0.conv9.weight'),
    (lambda s: {**s, 'layer3.9.conv1.weight': torch.zeros(1)}, 'unknown: backbone.layer3.9'),
    (lambda s: {**s, 'fc.bias': torch.zeros(10)}, r'head.fc.bias \(10,\) instead of \(1000,\)'),
    (lambda s: {**s, 'epoch': 3}, "entry 'epoch' is a int"),
    (lambda s: {**s, 3: torch.zeros(1)}, 'key 3 is a int, expected a string'),
    (lambda s: {**s, 'fc.bias': s['fc.bias'].to_sparse()}, "entry 'fc.bias' .* expected a dense"),
    (lambda s: {**s, 'module.fc.bias': s['fc.bias']}, "'fc.bias' and 'module.fc.bias' differ by"),
    (lambda s: {**s, 'fc.bias': s['fc.bias'].int()}, 'wrong dtype: head.fc.bias torch.int32'),
    (lambda s: {**s, 'fc.bias': s['fc.bias'] / 0}, 'NaN or infinite: head.fc.bias'),
    (lambda s: {}, 'holds no tensors'),
])
def test_a_checkpoint_that_does_not_fit_is_listed_and_not_written(spoil, message, coresnet50,
                                                                 tmp_path):
    torch.save(spoil(coresnet50), tmp_path / 'source.pth')
    with pytest.raises(UserError, match=message):
        convert_checkpoint(str(tmp_path / 'source.pth'), str(tmp_path / 'new.pth'), 'coresnet50',
                           CONFIGS)
    assert [p.name for p in tmp_path.iterdir()] == ['source.pth']


def test_the_converted_checkpoint_holds_its_own_values_alone(coresnet50, tmp_path):
    flat = torch.rand(4000)
    halved = {k: v.half() for k, v in coresnet50.items()}
    torch.save({**halved, 'fc.bias': flat[:1000]}, tmp_path / 'source.pth')
    convert_checkpoint(str(tmp_path / 'source.pth'), str(tmp_path / 'new.pth'), 'coresnet50',
                       CONFIGS)
    state = torch.load(tmp_path / 'new.pth', weights_only=True)['state_dict']
    assert torch.equal(state['head.fc.bias'], flat[:1000])
    assert state['head.fc.bias'].untyped_storage().nbytes() == 4000
    assert state['backbone.layer1.0.norm3.num_batches_tracked'].dtype == torch.int64


def test_a_destination_that_cannot_be_written_is_named(coresnet50, tmp_path):
    torch.save(coresnet50, tmp_path / 'source.pth')
    (tmp_path / 'folder').mkdir()
    for name in ('folder', 'source.pth/new.pth'):
        with pytest.raises(UserError, match='cannot write the destination'):
            convert_checkpoint(str(tmp_path / 'source.pth'), str(tmp_path / name), 'coresnet50',
                               CONFIGS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder', 'source.pth']


CONV, BIASED = ('weight', ), ('weight', 'bias')
NORM = (*BIASED, 'running_mean', 'running_var', 'num_batches_tracked')
COT = {'key_embed.0': CONV, 'key_embed.1': NORM, 'embed.0': CONV, 'embed.1': NORM,
       'embed.3': BIASED, 'embed.4': BIASED, 'conv1x1.0': CONV, 'conv1x1.1': NORM, 'bn': NORM,
       'se.0': BIASED, 'se.1': NORM, 'se.3': BIASED}
SPLIT_ATTENTION = {'conv': CONV, 'bn0': NORM, 'fc1': BIASED, 'bn1': NORM, 'fc2': BIASED}
INVOLUTION = {'conv1.conv': CONV, 'conv1.bn': NORM, 'conv2.conv': BIASED}
CVOLUTION = {'conv1.0': BIASED, 'conv1.1': NORM, 'conv2.0': BIASED, 'conv_q': CONV}
PLAIN_STEM = {'conv1': CONV, 'bn1': NORM}
DEEP_STEM = {'conv1.0': CONV, 'conv1.1': NORM, 'conv1.3': CONV, 'conv1.4': NORM,
             'conv1.6': CONV, 'bn1': NORM}


def dynamic_stem(layer):
    return {'stem.0.conv': CONV, 'stem.0.bn': NORM, 'stem.2': NORM, 'stem.4.conv': CONV,
            'stem.4.bn': NORM, **{f'stem.1.{part}': leaves for part, leaves in layer.items()}}


def authors_names(stem, layer_of, blocks, norm2, first_shortcut):
    parts = dict(stem)
    for stage, count in enumerate(blocks):
        for block in range(count):
            name = f'layer{stage + 1}.{block}'
            for source, leaves in layer_of(stage, block).items():
                parts[f'{name}.conv2{source and "." + source}'] = leaves
            for norm in ('bn1', 'bn3') + (('bn2', ) if norm2 else ()):
                parts[f'{name}.{norm}'] = NORM
            parts[f'{name}.conv1'] = parts[f'{name}.conv3'] = CONV
            if block == 0:
                parts[f'{name}.downsample.{first_shortcut}'] = CONV
                parts[f'{name}.downsample.{first_shortcut + 1}'] = NORM
    parts['fc'] = BIASED
    return [f'{part}.{leaf}' for part, leaves in parts.items() for leaf in leaves]


def pyramid(stage, block):
    return {'': CONV} if stage == 3 else {f'conv2_{i + 1}': CONV for i in range(4 - stage)}


def se_cotnetd(stage, block):
    return COT if stage == 3 or (stage == 2 and block % 2 == 0) else SPLIT_ATTENTION


PUBLISHED_NAMES = {
    'pyconvhgresnet50': (PLAIN_STEM, pyramid, (3, 4, 6, 3), True, 1),
    'pyconvresnet101': (PLAIN_STEM, pyramid, (3, 4, 23, 3), True, 1),
    'coresnet152': (PLAIN_STEM, pyramid, (3, 8, 36, 3), True, 0),
    'cotnet50': (PLAIN_STEM, lambda *_: COT, (3, 4, 6, 3), False, 0),
    'cotnext101_2x48d': (PLAIN_STEM, lambda *_: COT, (3, 4, 23, 3), False, 0),
    'se_cotnetd_152': (DEEP_STEM, se_cotnetd, (3, 8, 36, 3), False, 1),
    'rednet38': (dynamic_stem(INVOLUTION), lambda *_: INVOLUTION, (2, 3, 5, 2), True, 0),
    'cednet101': (dynamic_stem(CVOLUTION), lambda *_: CVOLUTION, (3, 4, 23, 3), True, 0),
}


@pytest.mark.parametrize('arch', PUBLISHED_NAMES)
def test_published_names_cover_the_model(arch):
    renamed = []
    for name in authors_names(*PUBLISHED_NAMES[arch]):
        match, rename = next((p.fullmatch(name), r) for p, r in ARCHITECTURES[arch].rules
                             if p.fullmatch(name))
        renamed.append(rename(match))
    model = build_for_conversion(osp.join(CONFIGS, ARCHITECTURES[arch].config))
    assert sorted(renamed) == sorted(model.state_dict())


def test_the_tool_says_what_is_wrong_in_one_line(tmp_path):
    tool = osp.join(ROOT, 'tools', 'model_converters', 'convert_official.py')
    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04 cut')
    for source, arch, message in (('absent.pth', 'cednet50', 'does not exist'),
                                  ('cut.pth', 'cednet50', 'truncated'),
                                  ('cut.pth', 'resnet50', 'unknown arch')):
        run = subprocess.run([sys.executable, tool, str(tmp_path / source),
                              str(tmp_path / 'new.pth'), '--arch', arch],
                             capture_output=True, text=True)
        assert run.returncode == 1
        assert len(run.stderr.strip().splitlines()) == 1 and message in run.stderr
