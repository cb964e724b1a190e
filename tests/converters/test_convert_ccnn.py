import os.path as osp

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmcontext.converters import convert_ccnn, convert_checkpoint
from mmcontext.utils.errors import CheckpointError

CONFIGS = osp.join(osp.dirname(__file__), '..', '..', 'configs')


def conv_keys(dim, channels, out_channels, net):
    ones = (1, ) * dim
    keys = {'bias': (channels, ), 'mask_width_param': (dim, ), 'train_length': (1, ),
            'initialized': (1, ), 'mask_mean_param': (dim, ), 'mask_threshold': (1, ),
            'channel_mixer.weight': (out_channels, channels, *ones),
            'channel_mixer.bias': (out_channels, )}
    linears = {
        'MAGNet': {'filters.0.linear': (6, dim), 'filters.1.linear': (6, dim),
                   'linears.0': (6, 6)},
        'SIREN': {'kernel_net.0': (6, dim), 'kernel_net.2': (6, 6)},
        'KernelMLP': {'input_layers.0': (6, dim), 'hidden_layers.0': (6, 6),
                      'hidden_layers.3': (6, 6)},
        'RandomFeatureNet': {'input_layers.linear': (3, dim), 'hidden_layers.0': (6, 6),
                             'hidden_layers.3': (6, 6)},
    }[net]
    linears['output_linear'] = (channels, 6)
    for name, shape in linears.items():
        keys[f'Kernel.{name}.weight'] = (*shape, *ones)
        keys[f'Kernel.{name}.bias'] = shape[:1]
    if net == 'MAGNet':
        for i in (0, 1):
            keys[f'Kernel.filters.{i}.mu'] = keys[f'Kernel.filters.{i}.gamma'] = (6, dim)
    if net == 'SIREN':
        keys['Kernel.kernel_net.0.omega_0'] = keys['Kernel.kernel_net.2.omega_0'] = (1, )
    return keys


def authors_checkpoint(dim, net='MAGNet', block='s4', pool_after=()):
    """A checkpoint with the names of the authors' code, with 2 blocks of 5 channels."""
    keys = {}

    def norm(name):
        for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
            keys[f'{name}.{leaf}'] = (5, )
        keys[f'{name}.num_batches_tracked'] = ()

    def conv(name, channels):
        keys.update({f'{name}.{k}': v for k, v in conv_keys(dim, channels, 5, net).items()})

    conv('conv1', 2)
    norm('norm1')
    number = 0
    for i in range(2):
        prefix = f'blocks.{number}.'
        conv(prefix + 'conv1', 5)
        norm(prefix + 'norm1')
        if block == 's4':
            keys[prefix + 'linear1.weight'] = (5, 5, *(1, ) * dim)
            keys[prefix + 'linear1.bias'] = (5, )
        else:
            conv(prefix + 'conv2', 5)
            norm(prefix + 'norm2')
        # Pools are entries of the same sequential.
        number += 2 if i in pool_after else 1
    keys['out_layer.weight'] = (3, 5, *(1, ) * dim)
    keys['out_layer.bias'] = (3, )
    if block == 's4':
        norm('out_norm')
    special = {'train_length': torch.tensor([9], dtype=torch.int32),
               'initialized': torch.tensor([True]), 'mask_threshold': torch.tensor([0.1])}
    state = {}
    for key, shape in keys.items():
        leaf = key.rsplit('.', 1)[-1]
        state[key] = special.get(leaf, torch.rand(shape) + 0.5)
    return state


def model_for(dim, net='MAGNet', block='s4', pools=()):
    init_default_scope('mmpretrain')
    layers = {'MAGNet': 1, 'SIREN': 3, 'KernelMLP': 4, 'RandomFeatureNet': 4}[net]
    return MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmcontext.CCNN', in_channels=2, channels=5, num_blocks=2, block=block,
            pools=pools, conv_cfg=dict(
                type=f'mmcontext.SeparableFlexConv{dim}d', kernel_size=9,
                kernel_cfg=dict(type=net, hidden_channels=6, num_layers=layers))),
        neck=dict(type='GlobalAveragePooling', dim=dim),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=5)))


@pytest.mark.parametrize('dim', [1, 2, 3])
@pytest.mark.parametrize('net', ['MAGNet', 'SIREN', 'KernelMLP', 'RandomFeatureNet'])
def test_loads_strictly(dim, net):
    state = authors_checkpoint(dim, net)
    model = model_for(dim, net)
    model.load_state_dict(convert_ccnn(state), strict=True)
    conv = model.backbone.blocks[1].conv1
    assert conv.train_length.tolist() == [9] * dim and conv.kernel.initialized.item()
    assert torch.equal(conv.mask_width, state['blocks.1.conv1.mask_width_param'])
    assert torch.equal(conv.kernel_net.output_linear.weight,
                       state['blocks.1.conv1.Kernel.output_linear.weight'].flatten(1))
    assert torch.equal(model.head.fc.weight, state['out_layer.weight'].flatten(1))


@pytest.mark.parametrize('block', ['resnet', 'preact', 'tcn'])
def test_other_blocks(block):
    model_for(1, block=block).load_state_dict(
        convert_ccnn(authors_checkpoint(1, block=block)), strict=True)


def test_pools_leave_gaps_in_the_numbers():
    state = authors_checkpoint(1, pool_after=(0, ))
    assert 'blocks.2.norm1.weight' in state
    converted = convert_ccnn(state)
    assert torch.equal(converted['backbone.blocks.1.norm1.weight'],
                       state['blocks.2.norm1.weight'])
    model_for(1, pools=(0, )).load_state_dict(converted, strict=True)


def test_flag_missing_in_old_versions_is_set():
    state = {k: v for k, v in authors_checkpoint(1).items() if not k.endswith('initialized')}
    model = model_for(1)
    model.load_state_dict(convert_ccnn(state), strict=True)
    assert model.backbone.conv1.kernel.initialized.item()


def test_lightning_checkpoint(tmp_path):
    state = authors_checkpoint(2)
    wrapped = {'state_dict': {f'network.{k}': v for k, v in state.items()}}
    wrapped['state_dict']['train_acc.correct'] = torch.tensor(3)
    torch.save(wrapped, tmp_path / 'in.ckpt')
    convert_checkpoint(str(tmp_path / 'in.ckpt'), str(tmp_path / 'out.pth'), 'ccnn', CONFIGS)
    written = torch.load(tmp_path / 'out.pth')
    model_for(2).load_state_dict(written['state_dict'], strict=True)
    assert written['meta']['arch'] == 'ccnn'


def test_what_does_not_fit_is_listed():
    with pytest.raises(CheckpointError, match="no CCNN: it has no entry 'out_layer.weight'"):
        convert_ccnn({'fc.weight': torch.zeros(2, 2)})
    state = authors_checkpoint(1)
    state['blocks.0.attention.weight'] = torch.zeros(1)
    with pytest.raises(CheckpointError, match='1 unknown entries: blocks.0.attention.weight'):
        convert_ccnn(state)


@pytest.mark.parametrize('key, value, message', [
    ('blocks.x.conv1.bias', torch.zeros(1), '1 unknown entries: blocks.x.conv1.bias'),
    ('blocks.3', torch.zeros(1), '1 unknown entries: blocks.3'),
    ('out_layer.weight', torch.zeros(3, 5), r'must have 3 to 5 axes, got shape \(3, 5\)'),
    ('conv1.train_length', torch.zeros(3), r'conv1.train_length has shape \(3,\)'),
    ('conv1.Kernel.output_linear.weight', torch.zeros(2), r'output_linear.weight has shape'),
    ('norm1.bias', torch.tensor(float('nan')), 'norm1.bias is NaN'),
])
def test_odd_entries_are_named(key, value, message):
    with pytest.raises(CheckpointError, match=message):
        convert_ccnn({**authors_checkpoint(2), key: value})


@pytest.mark.parametrize('size, params', [('4_140', 198769), ('6_380', 1993091)])
def test_published_sizes(size, params):
    init_default_scope('mmpretrain')
    config = Config.fromfile(osp.join(CONFIGS, 'ccnn', f'ccnn_{size}_smnist.py'))
    model = MODELS.build(config.model)
    assert sum(p.numel() for p in model.parameters()) == params
