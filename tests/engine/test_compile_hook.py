import pytest
import torch
from common import COMPILES
from mmengine.model import BaseModel
from mmengine.runner import Runner
from tolerances import assert_close
from torch import nn
from torch.utils.data import DataLoader

from mmcontext.engine.hooks import CompileHook
from mmcontext.layers import Involution2d


class Net(BaseModel):

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), Involution2d(16, 16, 3))
        self.head = nn.Linear(16, 1)

    def forward(self, inputs, mode='tensor'):
        out = self.head(self.backbone(inputs).mean((2, 3)))
        return dict(loss=(out - 1).square().mean()) if mode == 'loss' else [out]


def trained(work_dir, *hooks):
    """Losses and weights after six steps over two image sizes."""
    images = [torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
              for size in (8, 11, 8, 11, 8, 11)]
    data = DataLoader(images, batch_size=None, collate_fn=lambda image: dict(inputs=image))
    losses = []
    runner = Runner(
        Net(), str(work_dir), train_dataloader=data, train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=list(hooks), experiment_name=work_dir.name,
        default_hooks=dict(logger=None, checkpoint=None, sampler_seed=None))
    step = runner.model.train_step
    runner.model.train_step = lambda *args, **kw: losses.append(step(*args, **kw)) or losses[-1]
    runner.train()
    return [float(loss['loss']) for loss in losses], runner.model.state_dict()


@COMPILES
def test_a_compiled_backbone_trains_as_an_eager_one(tmp_path):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    losses, weights = trained(tmp_path / 'eager')
    torch._dynamo.reset()
    actual, compiled = trained(tmp_path / 'compiled',
                               dict(type='mmcontext.CompileHook', backend=backend))
    assert 1 <= len(graphs) <= 2  # at most one per size: the backbone is one graph
    assert list(compiled) == list(weights)
    # float32 with another order of sums, whose errors accumulate in training.
    assert_close(actual, losses, rtol=1e-5, atol=0)
    for name, value in weights.items():
        assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_wrong_parts(tmp_path):
    with pytest.raises(TypeError, match="parts of CompileHook .*'backbone'"):
        CompileHook(parts='backbone')
    with pytest.raises(ValueError, match="parts=.*'neck'.* has .*backbone, head"):
        trained(tmp_path / 'wrong', CompileHook(parts=('neck', )))
