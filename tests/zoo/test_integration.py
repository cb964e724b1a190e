"""The zoo's names in mmpretrain, mmdet and mmseg."""
import pytest
import torch

import mmcontext
from mmcontext.zoo import index

mmpretrain = pytest.importorskip('mmpretrain')


def test_every_classifier_is_in_mmpretrains_hub_and_nothing_else():
    from mmpretrain.apis.model import ModelHub
    known = set(mmpretrain.list_models('*'))
    assert set(mmcontext.list_models()) <= known
    assert not known & set(mmcontext.list_models(task='detection'))
    for name in mmcontext.list_models('*50_imagenet'):
        assert ModelHub._models_dict[name].config == index.find(name).config


@pytest.fixture
def weights(tmp_path):
    model = mmpretrain.get_model('ccnn_digits')
    model.head.fc.bias.data[7] = 1e3  # so that the answer is known
    torch.save({'state_dict': model.state_dict(),
                'meta': {'dataset_meta': {'classes': [f'digit {i}' for i in range(10)]}}},
               tmp_path / 'weights.pth')
    return str(tmp_path / 'weights.pth')


def test_image_inferencer_by_name(weights):
    inferencer = mmpretrain.ImageClassificationInferencer('ccnn_digits', pretrained=weights)
    image = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8).numpy()
    assert inferencer(image)[0]['pred_class'] == 'digit 7'


def test_inference_model_takes_names_without_published_results():
    [name] = mmpretrain.list_models('cednet26_imagenet', task='Image Classification')
    assert mmpretrain.apis.model.ModelHub.get(name).results[0].task == 'Image Classification'


@pytest.mark.parametrize('package, inferencer, name', [
    ('mmdet', 'DetInferencer', 'mask_rcnn_cednet26_fpn_digits'),
    ('mmseg', 'MMSegInferencer', 'pyconvsegnet_pyconvresnet18_digits')])
def test_configs_by_name_in_mmdet_and_mmseg(package, inferencer, name):
    apis = pytest.importorskip(f'{package}.apis')
    cls = getattr(apis, inferencer)
    cfg, weights = cls._load_model_from_metafile(cls.__new__(cls), name.upper())
    assert cfg.model == mmcontext.get_config(name).model and weights is None
