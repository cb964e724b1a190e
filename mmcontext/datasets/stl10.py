"""STL-10 from its binary files."""
import os.path as osp
from typing import List, Sequence

import numpy as np
from mmpretrain.datasets import BaseDataset

from mmcontext.registry import DATASETS
from mmcontext.utils.errors import DataError


@DATASETS.register_module()
class STL10(BaseDataset):
    """Ten classes of 96x96 colour images, 5000 for training and 8000 for testing.

    Expects ``train_X.bin``, ``train_y.bin``, ``test_X.bin`` and ``test_y.bin``, as in
    ``stl10_binary``. Samples have ``img``, RGB [96, 96, 3], and ``gt_label``.

    Args:
        data_root (str): Folder with the files; nothing is downloaded.
        split (str): 'train' or 'test'. Defaults to 'train'.
        pipeline (Sequence): Transforms. Defaults to ().
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.
    """

    METAINFO = dict(classes=('airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey',
                             'ship', 'truck'))

    def __init__(self, data_root: str, split: str = 'train', pipeline: Sequence = (),
                 **kwargs) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self.split = split
        super().__init__(ann_file='', data_root=data_root, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Images and labels of the split."""
        paths = [osp.join(self.data_root, f'{self.split}_{part}.bin') for part in 'Xy']
        for path in paths:
            if not osp.isfile(path):
                raise DataError(f'no file {path}; unpack stl10_binary there or set data_root')
        pixels, labels = (np.fromfile(path, dtype=np.uint8) for path in paths)
        if len(pixels) != len(labels) * 3 * 96 * 96:
            raise DataError(f'{paths[0]} and {paths[1]} do not fit together: {len(pixels)} bytes '
                            f'for {len(labels)} images of {3 * 96 * 96}; one is cut short')
        if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
            raise DataError(f'{paths[1]} must hold labels from 1 to 10, got {labels.min()} to '
                            f'{labels.max()}')
        # Stored column by column, channels first.
        images = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        return [dict(img=np.ascontiguousarray(image), gt_label=int(label) - 1)
                for image, label in zip(images, labels)]
