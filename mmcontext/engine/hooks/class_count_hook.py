"""Stop before training or testing if a detector and its data disagree about classes."""
from typing import Any, Iterator, Tuple

from mmengine.hooks import Hook
from torch import nn

from mmcontext.registry import HOOKS
from mmcontext.utils.data import inner_datasets
from mmcontext.utils.errors import DataError

# Parts of detectors that are trained on the labels of the data. Others have different classes:
# proposal heads have one, semantic branches also the stuff, re-identification heads the persons.
_LABELLED = ('bbox_head', 'mask_head')


def _innermost(dataset: Any) -> Iterator[Any]:
    """The datasets inside any wrappers."""
    inner = inner_datasets(dataset)
    for item in inner:
        yield from _innermost(item)
    if not inner:
        yield dataset


def _labelled_parts(model: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """The parts whose number of classes is certain to be that of the data, with their paths."""
    # In detectors prompted by text the classes are its tokens.
    if any(hasattr(module, 'language_model') for module in model.modules()):
        return
    for path, module in model.named_modules():
        names = [name for name in path.split('.') if not name.isdigit()]
        if names and names[-1] in _LABELLED and 'rpn_head' not in names:
            yield path, module


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Compare the classes of heads, dataset and annotation file.

    mmdet itself would train nevertheless: a head with too few classes treats the labels beyond
    them as background, and classes missing from the annotation file lose their objects.

    Only certain errors are reported: box and mask heads must have all classes of the data or, for
    panoptic data, the things or the stuff.

    Args:
        model (nn.Module): a detector.
        dataset (Dataset): what it is trained or tested on, wrapped or not.

    Raises:
        DataError: They disagree.
    """
    for data in _innermost(dataset):
        name = type(data).__name__
        metainfo = getattr(data, 'metainfo', None) or {}
        classes = metainfo.get('classes')
        # Trackers are trained on only one of the classes in their data.
        if classes is None or any(base.__name__ == 'BaseVideoDataset'
                                  for base in type(data).__mro__):
            continue
        if isinstance(classes, str):
            raise DataError(f"metainfo.classes of {name} must be a tuple of names, got the "
                            f"string {classes!r}; for one class write ({classes!r}, )")
        right = {len(classes), *(len(metainfo[key]) for key in ('thing_classes', 'stuff_classes')
                                 if key in metainfo)}
        for path, module in _labelled_parts(model):
            count = getattr(module, 'num_classes', None)
            if isinstance(count, int) and count not in right:
                raise DataError(
                    f'{path} ({type(module).__name__}) has num_classes={count}, but {name} has '
                    f'{len(classes)} classes; set num_classes of the heads, or metainfo.classes '
                    'of the dataset')
        # CocoDataset keeps the ids of the categories whose names are among its classes.
        found = getattr(data, 'cat_ids', None)
        if isinstance(found, list) and len(found) != len(classes):
            raise DataError(
                f'only {len(found)} of the {len(classes)} classes of {name} are among the '
                f'categories of {data.ann_file}; set metainfo.classes of the dataset to names of '
                'that file')


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Run :func:`check_classes` before training, validation and test.

    ``tools/train.py`` and ``tools/test.py`` add it to every config of mmdet.
    """

    def before_train(self, runner) -> None:
        """Check the training data."""
        check_classes(runner.model, runner.train_dataloader.dataset)

    def before_val(self, runner) -> None:
        """Check the validation data."""
        check_classes(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner) -> None:
        """Check the test data."""
        check_classes(runner.model, runner.test_dataloader.dataset)
