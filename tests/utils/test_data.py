import pytest
from mmengine.dataset import BaseDataset

from mmcontext.utils.data import check_dataset, explain, missing_data
from mmcontext.utils.errors import DataError


def test_first_missing_path_of_a_wrapped_dataset_is_named(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/0.png').touch()
    inner = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='ann.json',
                 data_prefix=dict(img='images'))
    wrapped = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[inner]))
    assert f'{tmp_path}/ann.json (ann_file of CocoDataset) does not exist' in missing_data(wrapped)
    (tmp_path / 'ann.json').write_text('{}')
    assert missing_data(wrapped) is None


def test_remote_data_is_not_looked_for():
    assert missing_data(dict(type='CustomDataset', data_root='s3://bucket/data',
                             data_prefix='train')) is None


def test_only_faults_of_the_data_are_explained(tmp_path):
    cfg = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=[])
    (tmp_path / 'image.png').touch()
    assert explain(cfg, TypeError('unexpected keyword')) is None
    empty = explain(cfg, ValueError('need at least one array to concatenate'))
    assert 'CustomDataset found no samples' in str(empty)


class Listed(BaseDataset):
    def load_data_list(self):
        return [dict(img_path=path) for path in self._metainfo['paths']]


def test_first_image_must_be_there(tmp_path):
    image = tmp_path / 'a.png'
    dataset = Listed(metainfo=dict(paths=[str(image)]), serialize_data=False)
    with pytest.raises(DataError, match='the first image of Listed'):
        check_dataset(dataset)
    image.touch()
    check_dataset(dataset)


def test_a_dataset_without_samples():
    with pytest.raises(DataError, match='Listed found no samples'):
        check_dataset(Listed(metainfo=dict(paths=[]), serialize_data=False))
