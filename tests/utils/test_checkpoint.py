import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

import mmcontext  # noqa: F401
from mmcontext.utils import checkpoint as ckpt
from mmcontext.utils.errors import CheckpointError


class RunsCode:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


class Getattr:
    def __init__(self, obj, name):
        self.args = (obj, name)

    def __reduce__(self):
        return getattr, self.args


def training_state():
    """The state that mmengine's runner saves with the weights."""
    hub = MessageHub('test_checkpoint')
    hub.update_scalar('train/loss', 0.5)
    hub.update_info('best_score', np.float64(97.5))
    hub.update_info('keep_ckpt_ids', [1, 2])
    return {
        'state_dict': {'weight': torch.arange(4.)},
        'message_hub': hub.state_dict(),
        'meta': {
            'epoch': 3,
            'dataset_meta': {
                'int': np.int64(4), 'float': np.float32(0.5), 'array': np.arange(3),
                'flag': np.bool_(True), 'bytes': b'\x00\xff', 'classes': ('a', 'b')},
        },
    }


@pytest.fixture(params=['own_loader', 'restricted_unpickler'])
def loader(request, monkeypatch):
    """The loader of this torch, and the one for torch < 2.5."""
    if request.param == 'restricted_unpickler':
        monkeypatch.setattr(torch.serialization, '_weights_only_unpickler',
                            ckpt.restricted_pickle_module())
    return ckpt.load_checkpoint_file


def test_training_state_of_mmengine_loads(tmp_path, loader):
    path = tmp_path / 'epoch_3.pth'
    torch.save(training_state(), path)
    loaded = loader(str(path))
    buffer = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer) and buffer.mean() == 0.5
    assert buffer.statistics('max') == 0.5
    assert loaded['message_hub']['runtime_info']['best_score'] == 97.5
    meta = loaded['meta']['dataset_meta']
    assert meta['int'] == 4 and meta['float'] == 0.5 and meta['flag'] and meta['bytes'] == b'\0\xff'
    np.testing.assert_array_equal(meta['array'], np.arange(3))
    assert torch.equal(loaded['state_dict']['weight'], torch.arange(4.))


def test_plain_torch_load_after_importing_mmcontext(tmp_path):
    torch.save(training_state(), tmp_path / 'epoch_3.pth')
    assert torch.load(tmp_path / 'epoch_3.pth', weights_only=True)['meta']['epoch'] == 3


@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_names_of_both_numpy_generations_are_known(core):
    names = ckpt.safe_globals()
    assert f'{core}.multiarray._reconstruct' in names and f'{core}.multiarray.scalar' in names


@pytest.mark.parametrize('hostile', [
    lambda marker: RunsCode(marker),
    lambda marker: Getattr(HistoryBuffer, '__init__'),
    lambda marker: Getattr(HistoryBuffer, '__class__'),
    lambda marker: Getattr(torch.Tensor, 'tolist'),
    lambda marker: Getattr(np.ndarray, 'tofile'),
], ids=['system_call', 'init', 'class', 'tensor', 'ndarray'])
def test_a_pickle_that_could_run_code_is_refused(tmp_path, loader, hostile):
    path, marker = tmp_path / 'hostile.pth', tmp_path / 'marker'
    torch.save({'state_dict': {}, 'x': hostile(marker)}, path)
    with pytest.raises(CheckpointError, match='refused'):
        loader(str(path))
    assert not marker.exists()


def test_state_cannot_be_set_on_a_class(loader, tmp_path):
    payload = (b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n'
               b'}X\x03\x00\x00\x00minNsb.')
    path = tmp_path / 'class_state.pth'
    legacy_magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    path.write_bytes(legacy_magic + pickle.dumps(torch.serialization.PROTOCOL_VERSION, protocol=2)
                     + pickle.dumps({}, protocol=2) + payload)
    statistic = HistoryBuffer.min
    with pytest.raises(CheckpointError):
        loader(str(path))
    assert HistoryBuffer.min is statistic


def test_bad_files_are_told_apart(tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save(training_state(), whole)
    content = whole.read_bytes()
    for size in (0, 2, len(content) // 2, len(content) - 1):
        (tmp_path / 'cut.pth').write_bytes(content[:size])
        with pytest.raises(CheckpointError, match='truncated or damaged'):
            ckpt.load_checkpoint_file(str(tmp_path / 'cut.pth'))
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    with pytest.raises(CheckpointError, match='is not a PyTorch checkpoint'):
        ckpt.load_checkpoint_file(str(tmp_path / 'text.pth'))
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds a list, expected a dict'):
        ckpt.load_checkpoint_file(str(tmp_path / 'list.pth'))
    with pytest.raises(CheckpointError, match='none.pth does not exist'):
        ckpt.load_checkpoint_file(str(tmp_path / 'none.pth'))


def test_a_device_that_fails_is_not_the_files_fault(tmp_path):
    def fail(storage, location):
        raise RuntimeError('no such device')

    path = tmp_path / 'whole.pth'
    torch.save(training_state(), path)
    with pytest.raises(RuntimeError, match='^no such device$'):
        ckpt.load_checkpoint_file(str(path), map_location=fail)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match='truncated or damaged'):
        ckpt.load_checkpoint_file(str(path), map_location=fail)


def test_every_cut_of_an_old_file_is_told(tmp_path):
    torch.save({'weight': torch.arange(4.)}, tmp_path / 'old.pth',
               _use_new_zipfile_serialization=False)
    content = (tmp_path / 'old.pth').read_bytes()
    for size in range(len(content)):
        (tmp_path / 'cut.pth').write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            ckpt.load_checkpoint_file(str(tmp_path / 'cut.pth'))


def test_arguments_that_timm_stores_load(tmp_path, loader):
    torch.save({'args': argparse.Namespace(lr=0.1)}, tmp_path / 'timm.pth')
    assert loader(str(tmp_path / 'timm.pth'))['args'].lr == 0.1


def save(folder, name, mtime):
    torch.save({'state_dict': {}, 'name': name}, folder / name)
    os.utime(folder / name, (mtime, mtime))
    (folder / 'last_checkpoint').write_text(str(folder / name))


def test_resume_takes_the_recorded_checkpoint(tmp_path):
    assert ckpt.find_resumable_checkpoint(str(tmp_path)) is None
    save(tmp_path, 'epoch_2.pth', 20)
    save(tmp_path, 'epoch_1.pth', 10)
    assert ckpt.find_resumable_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')


def test_resume_takes_a_checkpoint_that_is_not_recorded_yet(tmp_path):
    save(tmp_path, 'epoch_3.pth', 30)
    save(tmp_path, 'epoch_1.pth', 10)
    os.utime(tmp_path / 'last_checkpoint', (11, 11))
    torch.save({'state_dict': {}}, tmp_path / 'epoch_2.pth')
    os.utime(tmp_path / 'epoch_3.pth', (5, 5))  # from an earlier run
    assert ckpt.find_resumable_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
    (tmp_path / 'epoch_2.pth').write_bytes(b'PK')
    assert ckpt.find_resumable_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_1.pth')


def test_resume_passes_over_a_truncated_newest_file(tmp_path, caplog):
    import logging
    for epoch in (1, 2, 3):
        save(tmp_path, f'epoch_{epoch}.pth', 10 * epoch)
    (tmp_path / 'best_accuracy.pth').write_bytes(b'PK not a candidate')
    content = (tmp_path / 'epoch_3.pth').read_bytes()
    (tmp_path / 'epoch_3.pth').write_bytes(content[:-10])
    found = ckpt.find_resumable_checkpoint(str(tmp_path), logging.getLogger('resume'))
    assert found == str(tmp_path / 'epoch_2.pth')
    assert 'epoch_3.pth is truncated' in caplog.text


@pytest.mark.parametrize('record', [b'', b'/somewhere/else/epoch_2.pth', b'\xff\x00PK'],
                         ids=['empty', 'moved', 'overwritten'])
def test_resume_without_a_usable_record(tmp_path, record):
    save(tmp_path, 'epoch_1.pth', 10)
    save(tmp_path, 'epoch_2.pth', 20)
    (tmp_path / 'last_checkpoint').write_bytes(record)
    (tmp_path / 'epoch_3.pth').symlink_to(tmp_path / 'deleted.pth')
    assert ckpt.find_resumable_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')


def test_resume_does_not_start_anew_over_unreadable_checkpoints(tmp_path):
    (tmp_path / 'iter_100.pth').write_bytes(b'PK')
    with pytest.raises(CheckpointError, match='none of the 1 checkpoints'):
        ckpt.find_resumable_checkpoint(str(tmp_path))
