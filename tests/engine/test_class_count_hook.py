from types import SimpleNamespace

import pytest
from torch import nn

from mmcontext.engine.hooks import ClassCountHook, check_classes
from mmcontext.utils.errors import DataError


def detector(box=3, mask=3, rpn=1):
    def head(count):
        module = nn.Identity()
        module.num_classes = count
        return module
    model = nn.Module()
    model.rpn_head = head(rpn)
    model.roi_head = nn.ModuleDict(dict(bbox_head=head(box), mask_head=head(mask)))
    return model


def dataset(classes=('a', 'b', 'c'), found=3):
    return SimpleNamespace(metainfo=dict(classes=classes), cat_ids=list(range(found)),
                           ann_file='data/train.json')


def test_agreement_passes_whatever_the_rpn_counts():
    check_classes(detector(), dataset())
    check_classes(detector(), SimpleNamespace(metainfo={}))


@pytest.mark.parametrize('model, data, message', [
    (detector(box=2), dataset(), r'roi_head.bbox_head .* has num_classes=2, but .* has 3 classes'),
    (detector(mask=4), dataset(), r'roi_head.mask_head .* has num_classes=4'),
    (detector(), dataset(found=1), r'only 1 of the 3 classes .* categories of data/train.json'),
    (detector(), dataset(classes='cat'), r"must be a tuple of names, got the string 'cat'"),
])
@pytest.mark.parametrize('wrap', [
    lambda data: data, lambda data: SimpleNamespace(dataset=data),
    lambda data: SimpleNamespace(datasets=[dataset(), data])], ids=['bare', 'repeat', 'concat'])
def test_disagreement_is_one_sentence(model, data, message, wrap):
    with pytest.raises(DataError, match=message):
        check_classes(model, wrap(data))


@pytest.mark.parametrize('when', ['train', 'val', 'test'])
def test_the_hook_checks_its_own_data(when):
    loaders = {f'{split}_dataloader': SimpleNamespace(
        dataset=dataset(found=2 if split == when else 3)) for split in ('train', 'val', 'test')}
    runner = SimpleNamespace(model=detector(), **loaders)
    for split in ('train', 'val', 'test'):
        check = getattr(ClassCountHook(), f'before_{split}')
        if split == when:
            with pytest.raises(DataError):
                check(runner)
        else:
            check(runner)
