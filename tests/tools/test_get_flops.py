import sys

import pytest
from common import ROOT, load_tool
from mmengine.config import Config

from mmcontext.engine.flops import Complexity


@pytest.fixture
def get_flops(monkeypatch, capsys):
    """Run the tool in this process; returns exit status, stdout and stderr."""
    pytest.importorskip('mmpretrain')
    tool = load_tool('analysis/get_flops.py')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['get_flops.py', *map(str, args)])
        try:
            status = tool.main()
        except SystemExit as error:
            status = error.code
        return (status, *capsys.readouterr())

    run.tool = tool
    return run


def test_counts_of_a_config(get_flops):
    status, out, _ = get_flops(ROOT / 'configs/rednet/rednet26_digits.py')
    assert status == 0
    # 9.233 M with 1000 classes; the linear layer has 990 * 2049 fewer here.
    assert 'Input shape: (32, 32)' in out and 'Params: 7.205 M' in out
    assert 'local_aggregation' in out


def test_shape_of_one_number_is_a_square_or_a_length(get_flops):
    status, out, _ = get_flops(ROOT / 'configs/rednet/rednet26_digits.py', '--shape', 40)
    assert status == 0 and 'Input shape: (40, 40)' in out
    sequence = ROOT / 'configs/ccnn/ccnn_sequential_digits.py'
    status, out, _ = get_flops(sequence, '--shape', 64)
    assert status == 0 and 'Input shape: (64,)' in out
    status, _, err = get_flops(sequence)
    assert status == 1 and 'give --shape LENGTH' in err


@pytest.mark.parametrize('args, message', [
    (['configs/_base_/schedules/imagenet_bs256_90e.py'], 'has no model'),
    (['configs/none.py'], 'no such config'),
    ([], 'give a config or --table'),
    (['configs/rednet/rednet26_digits.py', '--shape', 1, 2, 3], 'one or two numbers'),
])
def test_mistakes_are_told(get_flops, monkeypatch, args, message):
    monkeypatch.chdir(ROOT)
    status, _, err = get_flops(*args)
    assert status in (1, 2) and message in err


def test_table_has_a_row_for_every_network_of_a_family(get_flops, monkeypatch):
    monkeypatch.setattr(get_flops.tool, 'FAMILIES', ('rednet', ))
    monkeypatch.setattr(get_flops.tool, 'config_complexity',
                        lambda cfg, shape: Complexity(15540806, 2648505856, {}, 0))
    status, out, _ = get_flops('--table')
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert set(rows) == {p.stem for p in ROOT.glob('configs/rednet/*_imagenet.py')}
    assert rows['rednet50_imagenet'] == ['224', '15.541', '15.541', '2.65', '2.7', '-1.9', '%']


@pytest.mark.parametrize('name, shape', [
    ('cotnet/se_cotnetd152_imagenet', (256, 256)),
    ('pyconv/pyconvresnet50_augment_imagenet_320', (320, 320)),
    ('rednet/fpn_rednet50_512x1024_80k_cityscapes', (512, 1024)),
    ('rednet/faster_rcnn_rednet50_fpn_1x_coco', (800, 1280)),
])
def test_default_shape(get_flops, name, shape):
    assert get_flops.tool.default_shape(
        Config.fromfile(ROOT / 'configs' / f'{name}.py')) == shape
