"""Weights for others: published files, and folders of the Hugging Face hub."""
import json

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import mmcontext
from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.errors import CheckpointError, UserError

pytest.importorskip('safetensors')
from mmcontext.zoo.publish import publish, weights_hash  # noqa: E402


@pytest.fixture
def trained(tmp_path):
    """A checkpoint as saved in training."""
    config = mmcontext.get_config('ccnn_digits')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    torch.save({
        'state_dict': model.state_dict(), 'optimizer': {'state': {}},
        'message_hub': {}, 'param_schedulers': [],
        'meta': {'epoch': 3, 'cfg': config.pretty_text,
                 'dataset_meta': {'classes': tuple('0123456789')}},
    }, tmp_path / 'epoch_3.pth')
    return tmp_path / 'epoch_3.pth', model


def test_published_file_holds_weights_and_where_they_come_from(trained, tmp_path):
    path, model = trained
    written = publish(str(path), str(tmp_path / 'ccnn.safetensors'), origin='digits',
                      licence='Apache-2.0')
    loaded = load_checkpoint_file(written)
    meta, state = loaded['meta'], loaded['state_dict']
    assert set(loaded) == {'state_dict', 'meta'}
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert meta['hash'] == weights_hash(state)
    assert written == str(tmp_path / f'ccnn-{meta["hash"][:8]}.safetensors')
    assert meta['dataset_meta']['classes'] == list('0123456789')
    assert (meta['source'], meta['licence'], meta['epoch']) == ('digits', 'Apache-2.0', 3)
    assert 'mmcontext.CCNN' in meta['cfg']


def test_hash_sees_values_names_and_types_alone():
    state = {'a': torch.arange(6.).view(2, 3), 'b': torch.zeros(2)}
    assert weights_hash(state) == weights_hash(
        {'b': torch.zeros(4)[::2], 'a': torch.arange(6.).view(2, 3)})
    others = [{**state, 'b': torch.ones(2)}, {**state, 'b': torch.zeros(2, dtype=torch.int32)},
              {'a': state['a'], 'c': state['b']}, {**state, 'a': state['a'].view(3, 2)}]
    assert len({weights_hash(other) for other in [state, *others]}) == 5


def test_published_file_serves_plain_pytorch_and_mmpretrain(trained, tmp_path):
    mmpretrain = pytest.importorskip('mmpretrain')
    path, model = trained
    written = publish(str(path), str(tmp_path / 'ccnn.safetensors'))
    images = torch.randn(2, 3, 32, 32)
    plain = mmcontext.create_model('ccnn_digits', pretrained=written).eval()
    theirs = mmpretrain.get_model('ccnn_digits', pretrained=written)
    assert list(theirs._dataset_meta['classes']) == list('0123456789')
    with torch.no_grad():
        logits = theirs(images, mode='tensor')
        assert torch.allclose(plain(images), logits, atol=1e-5)  # float32


@pytest.mark.parametrize('arguments, message', [
    (dict(destination='x.pth'), "must end with .safetensors, got 'x.pth'"),
    (dict(destination='no/such/x.safetensors'), 'cannot write no/such/x-'),
    (dict(destination='x.safetensors', config='cednet'), 'neither a file nor a name'),
])
def test_wrong_arguments_are_one_sentence(trained, arguments, message):
    with pytest.raises(UserError, match=message):
        publish(str(trained[0]), **arguments)


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    torch.save({'state_dict': {'a': 1}}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='holds no weights'):
        publish(str(tmp_path / 'x.pth'), 'x.safetensors')


def test_hub_folder_round_trip(tmp_path):
    pytest.importorskip('huggingface_hub')
    options = dict(num_classes=3, channels=8)
    model = mmcontext.HubModel('ccnn_digits', **options).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text()) == {
        'name': 'ccnn_digits', 'in_channels': None, **options}
    loaded = mmcontext.HubModel.from_pretrained(tmp_path)
    other_classes = mmcontext.HubModel.from_pretrained(tmp_path, num_classes=5)
    assert other_classes.head.fc.out_features == 5
    by_name = mmcontext.create_model('ccnn_digits', pretrained=tmp_path, **options)
    for other in (loaded, by_name):
        assert all(torch.equal(value, other.state_dict()[key])
                   for key, value in model.state_dict().items())
    (tmp_path / 'model.safetensors').write_bytes(b'x')
    with pytest.raises(CheckpointError, match='truncated, damaged'):
        mmcontext.HubModel.from_pretrained(tmp_path)
