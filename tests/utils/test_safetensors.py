import pytest
import torch

from mmcontext.utils.checkpoint import load_checkpoint_file
from mmcontext.utils.errors import CheckpointError
from mmcontext.utils.safetensors import save_safetensors

pytest.importorskip('safetensors')


@pytest.fixture
def file(tmp_path):
    shared = torch.randn(4, 6)
    state = {'a': shared, 'view': shared.t()[1:], 'half': torch.randn(3).half(),
             'bf16': torch.randn(3).bfloat16(), 'double': torch.randn(2).double(),
             'count': torch.tensor(7), 'empty': torch.zeros(0, 3), 'nan': torch.tensor([torch.nan])}
    path = tmp_path / 'weights.safetensors'
    save_safetensors(state, {'dataset_meta': {'classes': ['a', 'b']}}, str(path))
    return path, state


def test_round_trip_is_equal_to_the_bit(file):
    path, state = file
    loaded = load_checkpoint_file(str(path))
    assert loaded['meta'] == {'dataset_meta': {'classes': ['a', 'b']}}
    assert loaded['state_dict'].keys() == state.keys()
    for key, value in state.items():
        found = loaded['state_dict'][key]
        assert found.dtype == value.dtype and found.shape == value.shape
        assert torch.equal(found.reshape(-1).view(torch.uint8),
                           value.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize('damage', [
    lambda data: data[:-5], lambda data: data[:20], lambda data: b'',
    lambda data: b'PK\x03\x04' + data, lambda data: b'\xff' * 8 + data[8:]])
def test_damaged_and_foreign_files_are_one_sentence(file, damage):
    path, _ = file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match='truncated, damaged or no safetensors') as info:
        load_checkpoint_file(str(path))
    assert '\n' not in str(info.value)


def test_files_of_other_libraries_load(tmp_path):
    from safetensors.torch import save_file
    save_file({'weight': torch.ones(2)}, tmp_path / 'other.safetensors')
    loaded = load_checkpoint_file(str(tmp_path / 'other.safetensors'))
    assert loaded['meta'] == {} and torch.equal(loaded['state_dict']['weight'], torch.ones(2))


def test_mmengine_loads_them_whoever_asks(file):
    from mmengine.runner import CheckpointLoader
    path, state = file
    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert torch.equal(loaded['state_dict']['a'], state['a'])
