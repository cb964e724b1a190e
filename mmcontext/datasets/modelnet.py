"""ModelNet, surfaces of objects as point clouds, from local files."""
import os.path as osp
from glob import glob
from typing import List, Tuple

import numpy as np
import torch
from torch import Tensor

from mmcontext.datasets.sequence_dataset import SequenceDataset
from mmcontext.registry import DATASETS
from mmcontext.utils.errors import DataError


def read_off(path: str) -> Tuple[np.ndarray, np.ndarray]:
    """An OFF file as vertices [V, 3] and triangles [F, 3]; other polygons become fans.

    Raises:
        DataError: It is not an OFF file, or is truncated.
    """
    with open(path) as file:
        words = file.read().split()
    # Some files of ModelNet40 have the first number right after OFF, without a space.
    if words and words[0].startswith('OFF'):
        words = [words[0][3:]] * (len(words[0]) > 3) + words[1:]
        try:
            vertices, faces = int(words[0]), int(words[1])
            numbers = np.array(words[3:], dtype=np.float64)
            points = numbers[:3 * vertices].reshape(vertices, 3)
            rest = numbers[3 * vertices:]
            triangles, at = [], 0
            for _ in range(faces):
                corners = rest[at + 1:at + 1 + int(rest[at])].astype(int)
                at += 1 + len(corners)
                triangles += [(corners[0], b, c) for b, c in zip(corners[1:], corners[2:])]
            triangles = np.array(triangles).reshape(-1, 3)
            if at <= len(rest) and len(triangles) and triangles.max() < vertices:
                return points, triangles
        except (ValueError, IndexError):
            pass
    raise DataError(f'{path} is no readable OFF file')


def sample_surface(vertices: np.ndarray, triangles: np.ndarray, count: int,
                   generator: np.random.RandomState) -> Tuple[np.ndarray, np.ndarray]:
    """Points and unit normals [count, 3], uniformly distributed over the surface.

    Raises:
        ValueError: The surface has no area.
    """
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    doubled = np.linalg.norm(normals, axis=1)
    if not doubled.sum() > 0:
        raise ValueError('the surface must have an area')
    face = generator.choice(len(triangles), count, p=doubled / doubled.sum())
    u, v = generator.rand(2, count, 1)
    # The upper half of the parallelogram is folded onto the triangle.
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    points = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return points, normals[face] / doubled[face, None]


@DATASETS.register_module()
class ModelNet(SequenceDataset):
    """ModelNet10 or ModelNet40, a cloud of normals and positions [6, num_points] per object.

    Expects ``data_root/CLASS/train/*.off`` and ``.../test/*.off``, as in the archives. The points
    are drawn uniformly from the surface, the same at every access, then centred and scaled to
    [-1, 1]. There is no validation part: 'val' is the test part.

    Args:
        data_root (str): Folder with one folder per class.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        num_points (int): Points of an object. Defaults to 512.
        resampling (int): How often each training object is in the data, with different points.
            Defaults to 1.
        seed (int): Seed of the points. Defaults to 0.
        **kwargs: See :class:`SequenceDataset`.

    Raises:
        ValueError: ``num_points`` or ``resampling`` is not positive.
        DataError: There are no such files, or one is not readable.
    """

    def __init__(self, *args, num_points: int = 512, resampling: int = 1, seed: int = 0,
                 **kwargs) -> None:
        for name, value in (('num_points', num_points), ('resampling', resampling)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value!r}')
        self.num_points = num_points
        self.resampling = resampling
        self.seed = seed
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Paths, labels and index of the sampling."""
        part = 'train' if self.split == 'train' else 'test'
        paths = sorted(glob(osp.join(self.data_root, '*', part, '*.off')))
        if not paths:
            raise DataError(f'no file {self.data_root}/CLASS/{part}/*.off; unpack ModelNet there '
                            'or set data_root')
        classes = sorted({path.split(osp.sep)[-3] for path in paths})
        self._metainfo['classes'] = tuple(classes)
        draws = self.resampling if self.split == 'train' else 1
        return [dict(img_path=path, gt_label=classes.index(path.split(osp.sep)[-3]), draw=draw)
                for path in paths for draw in range(draws)]

    def load_sequence(self, info: dict) -> Tensor:
        """Normals, then positions: [6, num_points]."""
        name = osp.basename(info['img_path'])
        seed = [self.seed, info['draw'], *name.encode()]
        points, normals = sample_surface(
            *read_off(info['img_path']), self.num_points, np.random.RandomState(seed))
        points = points - points.mean(0)
        points = points / np.abs(points).max() * 0.999999
        return torch.from_numpy(np.concatenate([normals, points], 1).T.astype(np.float32))
