import numpy as np
import pytest
import torch
from tolerances import assert_close

from mmcontext.registry import DATASETS, MODELS
from mmcontext.utils.errors import DataError

CUBE = '''OFF{glue}8 6 0
-1 -1 -1
 1 -1 -1
 1  1 -1
-1  1 -1
-1 -1  1
 1 -1  1
 1  1  1
-1  1  1
4 0 3 2 1
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
'''


def network(**kwargs):
    return MODELS.build(dict(
        type='mmcontext.PointCCNN', channels=8, num_blocks=2,
        conv_cfg=dict(type='mmcontext.PointFlexConv', num_neighbours=6,
                      kernel_cfg=dict(hidden_channels=4, omega_0=2.)), **kwargs))


def test_network_sees_positions_and_has_gradients_everywhere():
    torch.manual_seed(0)
    net = network(pre_norm=True)
    x = torch.randn(2, 6, 16)
    y, = net(x)
    assert y.shape == (2, 8, 16)
    moved = x.clone()
    moved[:, 3:] *= 2
    net.eval()
    assert not torch.allclose(net(x)[0], net(moved)[0])
    net.train()(x)[0].square().mean().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # Norms remove the constants added by the layers before them, so those get no gradient.
    assert not [n for n in silent if not n.endswith('bias')]
    assert all(layer.neighbours is None for layer in net._layers)


def test_wrong_arguments():
    with pytest.raises(ValueError, match='point convolution'):
        network(pools=(0, ))


@pytest.fixture
def folder(tmp_path):
    for name, glue in (('cube', '\n'), ('dice', '')):
        for part in ('train', 'test'):
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / f'{name}_1.off').write_text(CUBE.format(glue=glue))
    return tmp_path


def test_modelnet_draws_points_of_the_surface(folder):
    pytest.importorskip('mmpretrain')
    data = DATASETS.build(dict(type='mmcontext.ModelNet', data_root=str(folder), num_points=600,
                               resampling=2))
    assert len(data) == 4 and data.metainfo['classes'] == ('cube', 'dice')
    assert [data[i]['gt_label'] for i in range(4)] == [0, 0, 1, 1]
    cloud = data[0]['img'].double()
    normals, points = cloud[:3], cloud[3:]
    assert cloud.shape == (6, 600) and points.abs().max() == pytest.approx(0.999999)
    assert_close(normals.norm(dim=0), torch.ones(600).double())
    # A cube's normal is an axis; all sides are equally likely, and the points are flat along it.
    axis = normals.abs().argmax(0)
    assert np.allclose(np.bincount(axis.numpy()), 200, atol=45)  # 4 deviations for 600 draws
    for a in range(3):
        sides = points[a, axis == a] * normals[a, axis == a]
        assert sides.max() - sides.min() < 0.2  # 5 deviations of the mean of the points
    assert torch.equal(data[0]['img'], data[0]['img'])
    assert not torch.equal(data[0]['img'], data[1]['img'])


def test_modelnet_refuses_what_it_cannot_read(folder):
    pytest.importorskip('mmpretrain')
    cfg = dict(type='mmcontext.ModelNet', data_root=str(folder), split='test')
    (folder / 'dice/test/dice_1.off').write_text('OFF 8 6 0\n1 2 3')
    with pytest.raises(DataError, match='no readable OFF'):
        DATASETS.build(cfg)[1]
    with pytest.raises(DataError, match='unpack ModelNet'):
        DATASETS.build(dict(cfg, data_root='nowhere'))
