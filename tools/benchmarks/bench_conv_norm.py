"""Compare implementations of convolution and norm in whole networks: inference at batch 1,
interleaved in one process.

own: as installed: the C++ convolution where it is chosen, with norm etc. in one pass
library: oneDNN's convolution, then norm, residual and activation in one pass
folded: norms folded into the convolutions by mmcv's fuse_conv_bn, otherwise as own
prepacked: norms folded, and every weight prepacked for oneDNN, which adds residual and
    activation itself (torch's internal operators, as used by torch.compile's freezing)
frozen: torch.compile with freezing, which folds and prepacks (minutes per network; --frozen)

    python tools/benchmarks/bench_conv_norm.py --networks CedNet-50 --rounds 20
"""
import argparse
import copy
import json
import os
from typing import Callable, Dict, Optional

import numpy as np
import torch
from bench_models import NETWORKS, machine, run_in_turn
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmcontext.layers import conv_norm
from mmcontext.ops.conv_norm_act import METHOD_VARIABLE, Convolution

_UNARY = {'none': 'none', 'relu': 'relu', 'silu': 'swish'}
_own = conv_norm.run_compiled


class Prepacked:
    """Replaces ``run_compiled``: weights are packed in the first call, and kept."""

    def __init__(self) -> None:
        self.weights: Dict[tuple, Tensor] = {}

    def __call__(self, x: Tensor, conv: Optional[Convolution] = None, norm=None,
                 activation: str = 'none', residual: Optional[Tensor] = None,
                 method: str = 'auto') -> Tensor:
        if conv is None or norm is not None:
            return _own(x, conv, norm, activation, residual, method)
        weight, bias, *geometry = conv
        stride, padding, dilation, groups = geometry
        key = weight.data_ptr(), x.shape
        if key not in self.weights:
            self.weights[key] = torch.ops.mkldnn._reorder_convolution_weight(
                weight, padding, stride, dilation, groups, list(x.shape))
        packed, unary = self.weights[key], _UNARY[activation]
        options = bias, padding, stride, dilation, groups
        call = torch.ops.mkldnn._convolution_pointwise
        if residual is None:
            return call(x, packed, *options, unary, [], '')
        if activation == 'silu':
            return torch.nn.functional.silu(
                call.binary(x, residual, packed, *options, 'add', None, None, [], None))
        return call.binary(x, residual, packed, *options, 'add', None,
                           None if unary == 'none' else unary, [], None)


def _settle(model: nn.Module) -> nn.Module:
    """Set statistics and weights such that no norm is trivial."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
    return model.eval()


def _step(model: Callable, image: Tensor, method: str = 'auto', call: Callable = _own) -> Callable:
    def step() -> Tensor:
        os.environ[METHOD_VARIABLE] = method
        conv_norm.run_compiled = call
        with torch.no_grad():
            return model(image)[-1]
    return step


def ways(name: str, image: Tensor, frozen: bool) -> Dict[str, Callable[[], Tensor]]:
    """The implementations for a network, checked to give the same features."""
    model = _settle(MODELS.build(NETWORKS[name]))
    folded = fuse_conv_bn(copy.deepcopy(model))
    steps = dict(own=_step(model, image), library=_step(model, image, 'library'),
                 folded=_step(folded, image), prepacked=_step(folded, image, call=Prepacked()))
    if frozen:
        import torch._inductor.config as inductor
        inductor.freezing = True
        turned = image.contiguous(memory_format=torch.channels_last)
        steps['frozen'] = _step(
            torch.compile(copy.deepcopy(model).to(memory_format=torch.channels_last)), turned)
    expected = steps['own']()
    for way, step in steps.items():
        error = (step() - expected).abs().max() / expected.abs().max()
        assert error < 1e-3, (name, way, error)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', metavar='NAME', choices=list(NETWORKS),
                        default=[name for name in NETWORKS if name not in
                                 ('ResNet-50', 'CKResNet-50')])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--frozen', action='store_true')
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    print(json.dumps(machine()))
    image = torch.randn(1, 3, args.size, args.size)
    print('milliseconds: least, and median of the quotient to own within a round')
    for name in args.networks:
        times = run_in_turn(ways(name, image, args.frozen), args.rounds)
        print(f'{name:18}' + '  '.join(
            f'{way} {1e3 * min(values):.1f} ({np.median(np.divide(values, times["own"])):.2f})'
            for way, values in times.items()), flush=True)


if __name__ == '__main__':
    main()
