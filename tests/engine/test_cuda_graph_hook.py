"""CUDA graphs without a GPU: which calls get one, and that everything else is unchanged."""
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from tolerances import assert_close
from torch import nn
from torch.utils.data import DataLoader

from mmcontext.engine.hooks import CudaGraphHook, cuda_graph_hook
from mmcontext.engine.hooks.cuda_graph_hook import GraphedForward
from mmcontext.layers import CKConv2d, SeparableFlexConv2d


class Net(BaseModel):

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)

    def forward(self, inputs, mode='tensor'):
        out = self.backbone(inputs)
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


def train(work_dir, hook, **wrapper):
    data = [dict(inputs=torch.randn(2, 3, size, size)) for size in (8, 9, 8, 9, 8, 9, 7, 7, 8)]
    runner = Runner(
        Net(), str(work_dir), train_dataloader=DataLoader(data, batch_size=None),
        train_cfg=dict(by_epoch=True, max_epochs=1), custom_hooks=[hook],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), **wrapper),
        default_hooks=dict(logger=None, checkpoint=None, sampler_seed=None))
    return runner.train()


@pytest.fixture
def on_cpu(monkeypatch):
    """CPU tensors get graphs, which are plain calls; returns a list of (size, replays)."""
    captured = []

    def capture(module, forward, x, warmup):
        captured.append([x.shape[-1], 0])

        def replay(x):
            entry = next(entry for entry in captured if entry[0] == x.shape[-1])
            entry[1] += 1
            return forward(x)

        return replay

    monkeypatch.setattr(cuda_graph_hook, 'capture', capture)
    monkeypatch.setattr(GraphedForward, '_eligible', lambda self, x, others, named: (
        self._module.training and torch.is_grad_enabled()))
    return captured


def test_sizes_that_come_twice_get_graphs_until_there_are_enough(tmp_path, on_cpu):
    model = train(tmp_path, dict(type='mmcontext.CudaGraphHook', most_sizes=2))
    # The first call for a size is eager; 7 is one size too many.
    assert on_cpu == [[8, 3], [9, 2]]
    assert 'forward' not in model.backbone.__dict__  # gone after training


def test_tensors_that_no_graph_can_serve(monkeypatch):
    monkeypatch.setattr(cuda_graph_hook, 'capture', None)
    net, x = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4)
    forward = GraphedForward(net, 4, 3)
    for _ in range(3):
        assert_close(forward(x), net(x))


def test_kernels_that_grow_get_new_graphs(on_cpu):
    net = nn.Sequential(SeparableFlexConv2d(3, 4, 33, bias=False), CKConv2d(4, 4, 'same'))
    forward, x = GraphedForward(net, 4, 3), torch.randn(1, 3, 8, 8)
    for _ in range(4):
        forward(x)
    # The first call fixes the sizes, the second is the first with them.
    assert on_cpu == [[8, 2]]
    with torch.no_grad():
        net[0].mask_width.add_(1e-6)
    forward(x)
    assert on_cpu == [[8, 3]]
    with torch.no_grad():
        net[0].mask_width.mul_(3)
    for _ in range(2):
        assert_close(forward(x), net(x))
    assert len(on_cpu) == 2


def test_wrong_parts_and_accumulated_gradients(tmp_path):
    with pytest.raises(TypeError, match="parts of CudaGraphHook .*'backbone'"):
        CudaGraphHook(parts='backbone')
    with pytest.raises(ValueError, match="parts=.*'neck'.* has .*backbone"):
        train(tmp_path / 'a', CudaGraphHook(parts=('neck', )))
    with pytest.raises(ValueError, match='accumulative_counts=2'):
        train(tmp_path / 'b', CudaGraphHook(), accumulative_counts=2)
