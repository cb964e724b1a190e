import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from tolerances import assert_close
from torch import nn

from mmcontext.engine.hooks import PreciseStatisticsHook, update_bn_stats

DATA = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(BaseModel):
    """Two norms, one of them frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fixed = nn.BatchNorm1d(4)

    def train(self, mode=True):
        super().train(mode)
        self.fixed.eval()
        return self

    def forward(self, inputs, mode='tensor'):
        inputs = torch.stack(inputs) if isinstance(inputs, list) else inputs
        out = self.fixed(self.norm(self.linear(inputs)))
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


def batch_statistics(net, batches):
    """Average mean and unbiased variance at the norm's input."""
    features = [net.linear(batch).detach() for batch in batches]
    return (torch.stack([f.mean(0) for f in features]).mean(0),
            torch.stack([f.var(0) for f in features]).mean(0))


def test_statistics_are_the_average_of_the_batches():
    net = Net().double().train()
    update_bn_stats(net, [dict(inputs=b) for b in DATA.split(6)])
    mean, var = batch_statistics(net, DATA.split(6))
    # float64, and means close to zero.
    assert_close(net.norm.running_mean, mean, rtol=1e-12, atol=1e-14)
    assert_close(net.norm.running_var, var, rtol=1e-12, atol=1e-14)
    assert net.norm.momentum == 0.1
    assert not net.fixed.running_mean.any() and (net.fixed.running_var == 1).all()


def test_no_batch_and_no_norm():
    with pytest.raises(ValueError, match='at least one batch'):
        update_bn_stats(Net().train(), [])
    assert update_bn_stats(Net().eval(), []) == 0
    with pytest.raises(ValueError, match='num_iters'):
        PreciseStatisticsHook(0)


class Watch(Hook):
    """Records the statistics during validation, and those expected for its weights."""

    def __init__(self):
        self.seen = []

    def before_val(self, runner):
        mean, _ = batch_statistics(runner.model, DATA.split(6))
        self.seen.append((runner.model.norm.running_mean.clone(), mean))


def train(tmp_path, by_epoch, hooks):
    def loader(shuffle):
        return dict(batch_size=6, num_workers=0, dataset=[dict(inputs=row) for row in DATA],
                    sampler=dict(type='DefaultSampler', shuffle=shuffle))
    loops = (dict(by_epoch=True, max_epochs=3, val_interval=2) if by_epoch else
             dict(type='IterBasedTrainLoop', max_iters=12, val_interval=8))
    runner = Runner(
        Net().double(), str(tmp_path), train_dataloader=loader(True), val_dataloader=loader(False),
        train_cfg=loops, val_cfg=dict(), val_evaluator=[],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), custom_hooks=hooks,
        default_hooks=dict(logger=None, checkpoint=None), randomness=dict(seed=0),
        experiment_name=f'{tmp_path.name}{by_epoch}{len(hooks)}', log_level='WARNING')
    runner.val_evaluator.process = lambda *args, **kwargs: None
    runner.val_evaluator.evaluate = lambda *args: {}
    return runner.train()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_before_every_validation_and_at_the_end_and_training_goes_on(tmp_path, by_epoch):
    watch = Watch()
    net = train(tmp_path, by_epoch, [PreciseStatisticsHook(num_iters=4), watch])
    # Validation after 8 of the 12 iterations, or 2 of the 3 epochs.
    [(seen, expected)] = watch.seen[:1]
    # float64, over several iterations of training.
    assert_close(seen, expected, rtol=1e-9, atol=1e-12)
    mean, var = batch_statistics(net, DATA.split(6))
    assert_close(net.norm.running_mean, mean, rtol=1e-9, atol=1e-12)
    plain = train(tmp_path, by_epoch, [])
    for ours, theirs in zip(net.parameters(), plain.parameters()):
        assert torch.equal(ours, theirs)
    assert not torch.allclose(plain.norm.running_mean, net.norm.running_mean, rtol=1e-3)
