"""Networks by name: plain PyTorch, with timm's attributes."""
import json
import os
import os.path as osp
import subprocess
import sys

import numpy as np
import pytest
import torch
from golden.reference import (
    authors_state_dict,
    golden_input,
    make_deterministic,
    relative_error,
)

import mmcontext
from mmcontext.converters import ARCHITECTURES, convert_checkpoint
from mmcontext.utils.errors import CheckpointError
from mmcontext.zoo import index
from mmcontext.zoo.classifier import ZooClassifier, default_cfg
from mmcontext.zoo.create import adapt_channels

GOLDEN = os.environ.get('MMCONTEXT_GOLDEN', '')
CLASSIFIERS = mmcontext.list_models()
# A network and its narrow sibling, for what is common to all.
NARROW = dict(name='rednet26_digits', base_channels=32)


def narrow(**options):
    return mmcontext.create_model(**{**NARROW, **options})


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_every_name_is_a_network_with_the_configs_parameters(name):
    entry = index.find(name)
    # (mmpretrain's ResNet cannot be built there.)
    with torch.device('cpu' if name.startswith('resnet') else 'meta'):
        model = ZooClassifier(entry)
    assert sum(p.numel() for p in model.parameters()) == entry.metadata['Parameters']
    assert model.num_features == model.get_classifier().in_features
    assert model.num_classes == model.default_cfg['num_classes']


def test_names_without_imagenet_and_near_misses():
    assert index.find('CedNet50').name == 'cednet50_imagenet'
    assert mmcontext.list_models('ced*_imagenet') == sorted([
        *(f'cednet{depth}_imagenet' for depth in (101, 152, 26, 38, 50)),
        'cednet50_rsb-a2_imagenet', 'cednet50_rsb-a3_imagenet'])
    assert mmcontext.list_models(['ced*50*', 'red*50*'], exclude_filters='*_rsb-*') == [
        'cednet50_imagenet', 'rednet50_imagenet']
    with pytest.raises(ValueError, match="no network 'cednet5'; did you mean .*cednet50"):
        mmcontext.create_model('cednet5')
    with pytest.raises(ValueError, match='task must be one of'):
        mmcontext.list_models(task='regression')


def test_tasks_are_those_of_the_configs():
    scopes = dict(classification='mmpretrain', detection='mmdet', segmentation='mmseg')
    for name in ('ccnn_digits', 'retinanet_rednet50_fpn_1x_coco',
                 'cascade_mask_rcnn_cotnet50_fpn_1x_coco', 'mask_rcnn_cednet26_fpn_digits',
                 'fpn_rednet50_512x1024_80k_cityscapes', 'pyconvsegnet_pyconvresnet18_digits'):
        assert mmcontext.get_config(name).default_scope == scopes[index.find(name).task]


@pytest.mark.parametrize('name', [
    'ccnn_4_140_cifar10', 'ccnn_4_140_stl10', 'ccnn_4_140_smnist', 'ccnn_sequential_digits',
    'ccnn_small_cifar10', 'cednet26_digits', 'rednet50_imagenet', 'ckresnet50_imagenet',
    'coresnet50_imagenet', 'cotnet50_imagenet', 'se_cotnetd152_imagenet',
    'se_cotnetd152_320_imagenet', 'pyconvhgresnet50_imagenet',
    'pyconvresnet50_augment_imagenet_320'])
def test_settings_are_those_of_the_whole_config(name):
    """Reading them without mmpretrain's files gives the same as reading these too."""
    entry = index.find(name)
    parts = ('model', 'data_preprocessor', 'test_pipeline')
    ours, whole = index.read_settings(entry.config, *parts), mmcontext.get_config(name)
    assert ours.model == whole.model
    expected, found = default_cfg(entry, whole), default_cfg(entry, ours)
    expected.pop('interpolation'), found.pop('interpolation')
    # The metafile's ratio is rounded.
    assert found.pop('crop_pct') == pytest.approx(expected.pop('crop_pct'), abs=2e-3)
    assert found == expected


@pytest.mark.parametrize('name, width', [
    ('coresnet50_digits', 16), ('pyconvresnet18_digits', 64), ('cotnet50_digits', 16),
    ('se_cotnetd50', 16), ('cednet26', 32), ('ckresnet50', 16)])
def test_strides_and_channels_of_the_features(name, width):
    model = mmcontext.create_model(name, features_only=True, base_channels=width).eval()
    info = model.feature_info
    assert info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        levels = model(torch.zeros(1, 3, 64, 64))
    assert [level.shape[1] for level in levels] == info.channels()
    assert [64 // level.shape[2] for level in levels] == info.reduction()


def test_features_of_chosen_stages_and_output_stride():
    model = narrow(features_only=True, out_indices=(-1, 1), output_stride=8).eval()
    assert model.feature_info.reduction() == [8, 8]
    assert [tuple(f.shape[2:]) for f in model(torch.zeros(1, 3, 64, 64))] == [(8, 8)] * 2


def test_features_of_a_pooled_ccnn():
    model = mmcontext.create_model('ccnn_digits', features_only=True).eval()
    [level] = model(torch.zeros(1, 3, 32, 32))
    assert model.feature_info.channels() == [level.shape[1]]
    assert model.feature_info.reduction() == [32 // level.shape[2]]


@pytest.mark.parametrize('name', ['mask_rcnn_cednet26_fpn_digits',
                                  'pyconvsegnet_resnet50_cityscapes'])
def test_backbones_of_other_tasks(name):
    model = mmcontext.create_model(name, features_only=True).eval()
    levels = model(torch.zeros(1, 3, 64, 64))
    assert [level.shape[1] for level in levels] == model.feature_info.channels()
    assert [64 // level.shape[2] for level in levels] == model.feature_info.reduction()
    with pytest.raises(ValueError, match='features_only=True gives its backbone'):
        mmcontext.create_model(name)


def test_parts_make_the_whole():
    model = narrow().eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 1, 1)
    assert torch.equal(model(x), model.forward_head(features))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.double().reset_classifier(7)
    assert model(x.double()).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    assert model(x.double()).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool='max')
    pooled = model.forward_features(x.double()).amax((2, 3))
    assert torch.equal(model(x.double()), model.head(pooled))
    model.reset_classifier(0, global_pool='')
    assert torch.equal(model(x.double()), model.forward_features(x.double()))


def test_sequences():
    model = mmcontext.create_model('ccnn_sequential_digits', num_classes=3, channels=8).eval()
    assert model(torch.randn(2, 1, 64)).shape == (2, 3)


@pytest.fixture
def checkpoint(tmp_path):
    model = narrow()
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'weights.pth')
    return model, tmp_path / 'weights.pth'


def test_loads_a_file_and_a_folder(checkpoint):
    model, path = checkpoint
    for source in (path, path.parent):
        loaded = narrow(pretrained=source).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_first_convolution_and_classifier_are_adapted(checkpoint):
    model, path = checkpoint
    loaded = narrow(pretrained=path, in_channels=1, num_classes=4).eval()
    grey = torch.randn(2, 1, 32, 32)
    # float32: the weights of three channels are summed before the products instead of after.
    assert torch.allclose(loaded.forward_features(grey),
                          model.eval().forward_features(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    assert loaded(grey).shape == (2, 4)
    features = narrow(pretrained=path, features_only=True).eval()
    assert torch.equal(features(grey.expand(-1, 3, -1, -1))[-1],
                       model.forward_features(grey.expand(-1, 3, -1, -1)))
    features = narrow(pretrained=path, features_only=True, in_channels=1, out_indices=-1).eval()
    assert torch.allclose(features(grey)[0], loaded.forward_features(grey), atol=1e-5)


@pytest.mark.parametrize('channels', [2, 4, 7])
def test_more_channels_repeat_the_first_convolution(channels):
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (5, channels, 3, 3)
    for i in range(channels):
        assert torch.allclose(adapted[:, i], weight[:, i % 3] * 3 / channels)


@pytest.mark.parametrize('options, message', [
    (dict(features_only=True, num_classes=3), 'num_classes=3 has no meaning'),
    (dict(out_indices=(1, )), 'needs features_only=True'),
    (dict(features_only=True, out_indices=(4, )), 'out_indices must be stages 0 to 3, or -1'),
    (dict(num_classes=-1), 'num_classes must be'),
    (dict(in_channels=0), 'in_channels must be a positive number'),
    (dict(global_pool=''), 'needs num_classes=0, got'),
    (dict(global_pool='sum'), "global_pool must be 'avg'"),
    (dict(colour=1), "unexpected keyword argument 'colour'"),
    (dict(pretrained=True), 'pretrained must be a file or folder'),
])
def test_wrong_arguments_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        narrow(**options)


def test_wrong_checkpoints_are_one_sentence(checkpoint, tmp_path):
    _, path = checkpoint
    with pytest.raises(CheckpointError, match='does not fit coresnet50_digits: .* missing'):
        mmcontext.create_model('coresnet50_digits', pretrained=path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(CheckpointError, match='must hold one checkpoint .* it holds 0'):
        narrow(pretrained=tmp_path / 'empty')


def test_works_without_mmpretrain_and_import_is_light():
    program = (
        'import sys\n'
        'for name in ("mmpretrain", "mmdet", "mmseg", "torchvision"): sys.modules[name] = None\n'
        'import mmcontext\n'
        'print(any(n in sys.modules for n in ("mmcv", "mmcontext.zoo", "mmengine.runner")))\n'
        'import torch\n'
        'model = mmcontext.create_model("coresnet50", base_channels=16, num_classes=5).eval()\n'
        'print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))')
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert result.stdout.split('\n')[:2] == ['False', '(1, 5)'], result.stderr


@pytest.mark.skipif(not GOLDEN, reason='MMCONTEXT_GOLDEN names no folder')
@pytest.mark.parametrize('name', ['cednet26', 'coresnet50', 'pyconvresnet18', 'cotnet50'])
def test_golden_file_by_name_gives_the_golden_logits(name, tmp_path):
    with open(osp.join(GOLDEN, f'{name}.json')) as file:
        facts = json.load(file)
    expected = np.load(osp.join(GOLDEN, f'{name}.npz'))
    torch.save(authors_state_dict(facts['keys']), tmp_path / 'authors.pth')
    convert_checkpoint(str(tmp_path / 'authors.pth'), str(tmp_path / 'ours.pth'), name,
                       osp.join(index.root(), 'configs'))
    assert name in ARCHITECTURES
    model = mmcontext.create_model(name, pretrained=tmp_path / 'ours.pth')
    make_deterministic(model)
    with torch.no_grad():
        logits = model.train()(golden_input(facts['input_shape']))
    # float64 through a whole network, which amplifies rounding.
    assert relative_error(logits, torch.from_numpy(expected['train_logits'])) < 1e-6
