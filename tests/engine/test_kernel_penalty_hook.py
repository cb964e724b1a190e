import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.runner import Runner
from tolerances import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from mmcontext.engine.hooks import KernelPenaltyHook, kernel_penalty
from mmcontext.layers import SeparableFlexConv1d
from mmcontext.utils.dist import leave_process_group


class Net(BaseModel):
    """Two continuous layers (one of them optionally recomputed) and a linear one."""

    def __init__(self, recompute=None):
        super().__init__()
        kernel_cfg = dict(hidden_channels=4, num_layers=2, omega_0=2.)
        self.first = SeparableFlexConv1d(1, 3, 5, kernel_cfg=kernel_cfg, mask_cfg=dict(init=0.5))
        self.second = SeparableFlexConv1d(3, 3, 5, kernel_cfg=kernel_cfg, mask_cfg=dict(init=0.5))
        self.fc = nn.Linear(3, 2)
        self.recompute = recompute

    def forward(self, inputs, mode='tensor'):
        x = self.first(inputs)
        if self.recompute is None:
            x = self.second(x)
        else:
            x = checkpoint(self.second, x, use_reentrant=self.recompute)
        out = self.fc(x.mean(-1))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


def by_hand(net):
    """The sum as in the paper, in float64."""
    total = sum(layer.sample_kernel().double().square().sum().sqrt()
                for layer in (net.first, net.second))
    return total + sum(p.double().square().sum().sqrt() for name, p in net.named_parameters()
                       if 'kernel.net' not in name)


@pytest.fixture
def x():
    return torch.randn(4, 1, 9)


@pytest.mark.parametrize('recompute', [None, False, True])
def test_loss_and_gradients(x, recompute):
    net = Net(recompute)
    net(x)
    for name, p in net.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(p)  # the norm computed by hand has no gradient at zero
    reference = copy.deepcopy(net)
    reference.recompute = None
    hook = KernelPenaltyHook(0.1)
    hook.watch(net)
    losses = net(x.requires_grad_(), mode='loss')
    expected = 0.1 * by_hand(reference)
    # float32.
    assert losses['loss_kernel_penalty'].item() == pytest.approx(expected.item(), rel=1e-6)
    sum(losses.values()).backward()
    (reference(x, mode='loss')['loss'] + expected).backward()
    for (name, mine), theirs in zip(net.named_parameters(), reference.parameters()):
        # float32, compared with the sums of `by_hand` in float64.
        assert_close(mine.grad, theirs.grad, msg=name, rtol=1e-4, atol=1e-7)


def test_penalty_is_single_precision_under_autocast(x):
    net = Net()
    hook = KernelPenaltyHook(0.1)
    hook.watch(net)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = net(x, mode='loss')['loss_kernel_penalty']
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.1 * by_hand(net).item(), rel=1e-6)  # float32


def test_zero_tensors_have_finite_gradients(x):
    net = Net()
    nn.init.zeros_(net.fc.bias)
    hook = KernelPenaltyHook(1.)
    hook.watch(net)
    sum(net(x, mode='loss').values()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_only_training_losses_are_changed(x):
    net = Net()
    hook = KernelPenaltyHook(0.1)
    hook.watch(net)
    assert isinstance(net(x), torch.Tensor)
    assert set(net.eval()(x, mode='loss')) == {'loss'}
    hook.release()
    assert set(net.train()(x, mode='loss')) == {'loss'}


def test_frozen_layer_counts_its_kernel_and_no_parameters(x):
    net = Net()
    net(x)
    net.first.requires_grad_(False)
    net.first.eval()
    hook = KernelPenaltyHook(1.)
    hook.watch(net)
    net(x, mode='loss')
    loss = net(x, mode='loss')['loss_kernel_penalty']
    frozen = [p for n, p in net.first.named_parameters() if 'kernel.net' not in n]
    expected = by_hand(net) - sum(p.double().norm() for p in frozen)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # float32


def test_serves_models_without_continuous_layers():
    net = nn.Linear(3, 2)
    assert kernel_penalty(net, []).item() == pytest.approx(
        (net.weight.norm() + net.bias.norm()).item())


def test_negative_weight_is_named():
    with pytest.raises(ValueError, match='weight must not be negative, got -1'):
        KernelPenaltyHook(-1)


def train(tmp_path, hooks, **optim):
    torch.manual_seed(0)
    net = Net()
    data = DataLoader(torch.randn(8, 1, 9), batch_size=2,
                      collate_fn=lambda items: dict(inputs=torch.stack(items)))
    runner = Runner(net, str(tmp_path), train_dataloader=data,
                    train_cfg=dict(by_epoch=True, max_epochs=1),
                    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), **optim),
                    custom_hooks=hooks, default_scope='mmengine',
                    experiment_name=f'penalty_{len(hooks)}_{len(optim)}')
    runner.train()
    return net, runner


HOOK = [dict(type='mmcontext.KernelPenaltyHook', weight=0.1)]


@pytest.mark.parametrize('optim', [{}, dict(accumulative_counts=2)], ids=['plain', 'accumulated'])
def test_in_a_runner(tmp_path, optim):
    plain, _ = train(tmp_path, [], **optim)
    penalised, runner = train(tmp_path, HOOK, **optim)
    assert 'train/loss_kernel_penalty' in runner.message_hub.log_scalars
    assert penalised.fc.weight.norm() < plain.fc.weight.norm()
    # Nothing is left on the model.
    assert set(penalised(torch.randn(2, 1, 9), mode='loss')) == {'loss'}


def test_accumulation_averages_the_penalty(x):
    """Two accumulated iterations on the same batch equal one iteration on it."""
    nets = [Net()]
    nets[0](x)
    nets.append(copy.deepcopy(nets[0]))
    for net, counts in zip(nets, (1, 2)):
        hook = KernelPenaltyHook(0.1)
        hook.watch(net)
        wrapper = OptimWrapper(torch.optim.SGD(net.parameters(), lr=0.1),
                               accumulative_counts=counts)
        wrapper.initialize_count_status(net, 0, counts)
        for _ in range(counts):
            with wrapper.optim_context(net):
                loss = sum(net(x, mode='loss').values())
            wrapper.update_params(loss)
    for mine, theirs in zip(nets[0].parameters(), nets[1].parameters()):
        assert_close(mine, theirs, rtol=1e-5, atol=1e-6)  # float32: two halves are added


def _distributed_step(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 1, 9)
    net(x)
    alone = copy.deepcopy(net)
    for model in (net, alone):
        KernelPenaltyHook(0.1).watch(model)
    wrapped = MMDistributedDataParallel(net, device_ids=None, find_unused_parameters=True)
    for _ in range(2):
        wrapped.zero_grad()
        sum(wrapped(x[2 * rank:2 * rank + 2], mode='loss').values()).backward()
    sum(alone(x, mode='loss').values()).backward()
    for mine, theirs in zip(net.parameters(), alone.parameters()):
        assert_close(mine.grad, theirs.grad)
    del wrapped
    leave_process_group()


def test_two_processes_get_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(_distributed_step, (tmp_path / 'rendezvous', ), nprocs=2)


def test_masks_learn_at_their_own_rate():
    net = Net()
    wrapper = build_optim_wrapper(net, dict(
        optimizer=dict(type='AdamW', lr=0.02),
        paramwise_cfg=dict(custom_keys=dict(mask_width=dict(lr_mult=0.1)))))
    rates = {id(p): group['lr'] for group in wrapper.param_groups for p in group['params']}
    for name, p in net.named_parameters():
        assert rates[id(p)] == pytest.approx(0.002 if name.endswith('mask_width') else 0.02)
