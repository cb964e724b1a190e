import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

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


class Listed(BaseDataset):
    def load_data_list(self):
        return [dict(img_path=path) for path in self._metainfo['paths']]


def test_only_faults_of_the_data_are_explained(tmp_path):
    (tmp_path / 'image.png').touch()
    cfg = dict(type=Listed, data_root=str(tmp_path), metainfo=dict(paths=[]), pipeline=[])
    with pytest.raises(ValueError) as failure:
        DATASETS.build(cfg)
    wrapped = dict(type='RepeatDataset', times=2, dataset=cfg)
    assert f'found no samples in {tmp_path}' in str(explain(wrapped, failure.value))
    assert explain(cfg, TypeError('unexpected keyword')) is None
    assert explain(cfg, RuntimeError('Found 0 files')) is None
    cfg['metainfo'] = dict(paths=['image.png'])
    assert explain(cfg, failure.value) is None


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
