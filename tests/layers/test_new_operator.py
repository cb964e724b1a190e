"""An operator added as described in CONTRIBUTING.md works everywhere without any other code."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from tolerances import DOUBLE, SINGLE_LAYERS, assert_close
from torch import nn

from mmcontext.layers import replace_convs
from mmcontext.layers._geometry import DynamicKernelLayer
from mmcontext.layers.conv_norm import run_together
from mmcontext.models.backbones.context_resnet import ContextResNet
from mmcontext.ops import local_aggregation
from mmcontext.registry import MODELS


class Toy2d(DynamicKernelLayer):
    """Weights the neighbours of each pixel by a softmax."""

    def __init__(self, in_channels, out_channels=None, kernel_size=3, stride=1, padding=None,
                 dilation=1, groups=1, bias=False, kernel_size_override=None):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
                         bias, kernel_size_override)
        self.span = nn.Conv2d(in_channels, self.kernel_size[0] * self.kernel_size[1], 1,
                              self.stride)

    def forward(self, x):
        self.check_input(x)
        w = run_together(x, self.span).softmax(1).unsqueeze(1)
        return self.finish(local_aggregation(x, w, self.kernel_size, self.stride, self.padding,
                                             self.dilation))


class ToyNet(ContextResNet):
    arch_settings = {50: (1, 1, 1, 1)}

    def _spatial_cfg(self, stage, index):
        return dict(type='mmcontext.Toy2d')


@pytest.fixture(autouse=True)
def registered():
    for kind in (Toy2d, ToyNet):
        MODELS.register_module(module=kind)
    yield
    for kind in (Toy2d, ToyNet):
        del MODELS._module_dict[kind.__name__]


def test_against_its_definition():
    layer, x = Toy2d(4, 6, bias=True).double(), torch.randn(2, 4, 5, 7, dtype=torch.float64)
    w = layer.span(x).softmax(1)
    taps = F.unfold(x, 3, padding=1).view(2, 4, 9, 5, 7)
    expected = layer.projection((taps * w[:, None]).sum(2)) + layer.bias.view(1, -1, 1, 1)
    assert_close(layer(x), expected, DOUBLE)


def test_wherever_a_convolution_stands():
    x, cfg = torch.randn(2, 8, 9, 6), dict(type='mmcontext.Toy2d')
    for override in (None, 5):
        module = ConvModule(8, 4, 3, stride=2, padding=1,
                            conv_cfg=dict(cfg, kernel_size_override=override))
        assert module(x).shape == (2, 4, 5, 3)
    neck = MMENGINE_MODELS.build(dict(type='mmcontext.ContextFPN', in_channels=[8], out_channels=4,
                                      num_outs=2, context_cfg=cfg))
    assert [tuple(y.shape) for y in neck([x])] == [(2, 4, 9, 6), (2, 4, 5, 3)]
    net = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4))
    assert replace_convs(net, cfg) == ['0'] and isinstance(net[0], Toy2d)


def test_as_a_network_that_trains_and_infers_as_it_trained():
    net = MMENGINE_MODELS.build(dict(type='mmcontext.ToyNet', depth=50, base_channels=8,
                                     zero_init_residual=False))
    x = torch.randn(2, 3, 64, 64)
    y = net(x)[-1]
    y.square().mean().backward()
    assert y.shape == (2, 256, 2, 2) and all(p.grad is not None for p in net.parameters())
    net.eval()
    expected = net(x)[-1].detach()
    with torch.no_grad():
        assert_close(net(x)[-1] / expected.abs().max(), expected / expected.abs().max(),
                     SINGLE_LAYERS)
