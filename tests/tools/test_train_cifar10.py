"""The CIFAR-10 benchmark trains in slices, and its networks cost about the same."""
import json

import cv2
import numpy as np
import pytest
from common import load_tool

pytest.importorskip('mmpretrain')


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmarks/train_cifar10.py')


def test_networks_cost_within_a_fifth_of_resnet(tool):
    counts = {name: tool.config_complexity(tool.make_config('', name, 2, 0, ''), (32, 32)).flops
              for name in tool.NETWORKS}
    assert list(counts) == ['ResNet', 'CoResNet', 'PyConvResNet', 'CoTNet', 'RedNet', 'CedNet']
    assert all(0.8 < flops / counts['ResNet'] < 1.2 for flops in counts.values()), counts


@pytest.mark.parametrize('options', [[], ['--bfloat16']], ids=['float32', 'bfloat16'])
def test_a_slice_ends_after_an_epoch_and_the_next_goes_on(tool, options, tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    for split in ('train', 'test'):
        for label in '01':
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(2):
                cv2.imwrite(str(folder / f'{i}.png'),
                            random.randint(0, 256, (32, 32, 3), dtype=np.uint8))
    work_dir = tmp_path / 'runs'
    monkeypatch.setitem(tool.NETWORKS, 'CoResNet', 8)
    argv = ['train_cifar10.py', str(tmp_path), '--epochs', '3', '--networks', 'CoResNet',
            '--work-dir', str(work_dir), '--workers', '0', *options]
    path = work_dir / 'results.json'
    monkeypatch.setattr('sys.argv', [*argv, '--minutes', '0.0001'])
    for slices in (1, 2):
        monkeypatch.setattr(tool.time, 'time', iter(np.arange(0, 1e6, 10.)).__next__)
        tool.main()
        assert list(json.loads(path.read_text())['CoResNet, 0']['epochs']) == [
            str(i + 1) for i in range(slices)]
    device = json.loads(path.read_text())['CoResNet, 0']['device']
    assert device.endswith('bfloat16') == bool(options)

    monkeypatch.setitem(tool.NETWORKS, 'CoResNet', 32)
    monkeypatch.setattr('sys.argv', [*argv, '--table', '--plot', str(tmp_path / 'plot.png')])
    tool.main()
    assert cv2.imread(str(tmp_path / 'plot.png')).std() > 0
