"""The tools in tools/visualization, each once, with narrow untrained networks and noise."""
import sys

import pytest
import torch
from common import load_tool

from mmcontext.layers.continuous_kernel import ContinuousKernel
from mmcontext.utils.errors import UserError
from mmcontext.visualization.networks import (
    find_config,
    load_network,
    logits,
    pick_layer,
    read_image,
    to_input,
)
from mmcontext.zoo.index import get_config

pytest.importorskip('mmpretrain')


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """Training checkpoints, which contain their configs."""
    folder = tmp_path_factory.mktemp('networks')
    paths = {}
    for name, options in (('cednet26_digits', dict(base_channels=32)), ('ccnn_digits', {}),
                          ('coresnet50_digits', dict(base_channels=8)),
                          ('cotnet50_digits', dict(base_channels=16))):
        cfg = get_config(name)
        cfg.model.backbone.update(options)
        if 'base_channels' in options:
            cfg.model.head.in_channels = 32 * options['base_channels']
        cfg.model.data_preprocessor = cfg.data_preprocessor
        from mmcontext.engine.flops import build_model
        model = build_model(cfg)
        for module in model.modules():
            if isinstance(module, ContinuousKernel):
                module.look((32, 32))
        paths[name] = folder / name / 'epoch_1.pth'
        paths[name].parent.mkdir()
        torch.save({'state_dict': model.state_dict(), 'meta': {'cfg': cfg.pretty_text}},
                   paths[name])
    return paths


def call(monkeypatch, tool, *arguments):
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
    load_tool(f'visualization/{tool}.py').main()


@pytest.mark.parametrize('tool, names, options', [
    ('receptive_field', ['cednet26_digits', 'ccnn_digits'], ['--num-images', 1]),
    ('dynamic_kernels', ['cednet26_digits'], []),
    ('dynamic_kernels', ['cotnet50_digits'], ['--layer', 'layer1.0.spatial']),
    ('continuous_kernels', ['ccnn_digits'], []),
    ('pyramid', ['coresnet50_digits'], []),
    ('cam', ['ccnn_digits', 'coresnet50_digits'], ['--size', 64, '--method', 'layercam']),
    ('compare', ['cednet26_digits', 'coresnet50_digits'],
     ['--size', 32, '--batch', 2, '--rounds', 1]),
], ids=lambda value: value if isinstance(value, str) else '')
def test_pictures(tool, names, options, networks, monkeypatch, tmp_path):
    if tool == 'cam':
        pytest.importorskip('pytorch_grad_cam')
    out = tmp_path / 'picture.png'
    call(monkeypatch, tool, *[networks[name] for name in names], *options, '--out', out)
    assert out.read_bytes()[:4] == b'\x89PNG' and out.stat().st_size > 5000


def test_pictures_of_a_run_and_of_the_zoo(networks, monkeypatch, tmp_path):
    run = networks['ccnn_digits'].parent
    call(monkeypatch, 'continuous_kernels', networks['ccnn_digits'], '--run', run, '--out',
         tmp_path / 'run.png')
    call(monkeypatch, 'zoo_plot', '--out', tmp_path / 'zoo.svg')
    (run / 'start' / 'vis_data').mkdir(parents=True)
    (run / 'start' / 'vis_data' / 'scalars.json').write_text('{"loss": 1.0, "step": 1}\n')
    call(monkeypatch, 'curves', run, '--out', tmp_path / 'curves.png')
    assert len(list(tmp_path.iterdir())) == 3


def test_input_is_what_mmpretrain_makes_of_the_image(networks):
    network = load_network(str(networks['coresnet50_digits']))
    image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
    bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    expected = network.model.data_preprocessor({'inputs': [bgr]})['inputs']
    assert torch.allclose(to_input(network, image), expected, atol=1e-5)  # float32
    assert logits(network, expected).shape == (1, 10)


def test_wrong_picture_is_refused_at_once(monkeypatch, capsys):
    for out, message in (('a.txt', 'must end with .png'), ('no/a.png', "no folder 'no'")):
        with pytest.raises(SystemExit):
            call(monkeypatch, 'zoo_plot', '--out', out)
        assert message in capsys.readouterr().err


def test_what_is_wrong_is_one_sentence(networks, tmp_path):
    network = load_network(str(networks['coresnet50_digits']))
    with pytest.raises(UserError, match="no network 'cednet5'"):
        find_config('cednet5')
    (tmp_path / 'damaged.png').write_bytes(b'x')
    with pytest.raises(UserError, match='damaged.png is damaged or of an unknown kind'):
        read_image(str(tmp_path / 'damaged.png'), 8)
    with pytest.raises(UserError, match='does not exist'):
        read_image('none.png', 8)
    with pytest.raises(UserError, match='does not fit ccnn_digits'):
        load_network(f'ccnn_digits={networks["coresnet50_digits"]}')
    with pytest.raises(UserError, match='has no layer of type BatchNorm3d'):
        pick_layer(network.model, torch.nn.BatchNorm3d)
    with pytest.raises(UserError, match="has no layer 'x'"):
        pick_layer(network.model, torch.nn.BatchNorm2d, 'x')
    assert find_config('resnet18_8xb32_in1k').model.backbone.depth == 18
