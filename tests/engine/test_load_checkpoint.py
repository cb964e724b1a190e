"""The weights with which ContextRunner tests and resumes."""
import pytest
import torch
from mmengine.model import BaseModel, BaseTTAModel
from torch import nn

from mmcontext.engine.runner import ContextRunner
from mmcontext.utils.errors import CheckpointError


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.auxiliary_head = nn.Linear(2, 3)

    def forward(self, *_, **__):
        return {}


class Turns(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.fixture(params=['plain', 'test_time_augmentation'])
def runner(request, tmp_path):
    model = Net() if request.param == 'plain' else Turns(Net())
    runner = ContextRunner(model, str(tmp_path), experiment_name=f'load_{tmp_path.name}')
    runner._testing = True
    return runner


def load(runner, tmp_path, change=(), drop=()):
    state = {key: value for key, value in {**Net().state_dict(), **dict(change)}.items()
             if not key.startswith(tuple(drop))}
    torch.save(dict(state_dict=state), tmp_path / 'weights.pth')
    runner.load_checkpoint(str(tmp_path / 'weights.pth'))
    net = runner.model.module if isinstance(runner.model, Turns) else runner.model
    return torch.equal(net.head.weight, state['head.weight'])


def test_what_serves_training_only_may_differ(runner, tmp_path):
    assert load(runner, tmp_path, {'old': torch.ones(1)},
                ('auxiliary_head', 'norm.num_batches_tracked'))
    runner._testing, runner._resume = False, True
    with pytest.raises(CheckpointError, match='another model: unexpected key .*: old'):
        load(runner, tmp_path, {'old': torch.ones(1)})
    with pytest.raises(CheckpointError, match='another model: missing keys .*auxiliary_head'):
        load(runner, tmp_path, drop=('auxiliary_head', ))


@pytest.mark.parametrize('change, drop, complaint', [
    ({'head.weight': torch.ones(4, 2)}, (), 'size mismatch for head.weight'),
    ({'auxiliary_head.bias': torch.ones(4)}, (), 'size mismatch for auxiliary_head.bias'),
    ({}, ('head', 'auxiliary_head'), 'missing keys .*: head.weight, head.bias$')])
def test_weights_of_another_model_are_not_tested(runner, tmp_path, change, drop, complaint):
    with pytest.raises(CheckpointError, match=f'is of another model: {complaint}'):
        load(runner, tmp_path, change, drop)


def test_other_errors_pass(runner, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('no memory')

    monkeypatch.setattr(runner, 'call_hook', fail)
    with pytest.raises(RuntimeError, match='^no memory$'):
        load(runner, tmp_path)
