"""Inference with the kernel cached between calls, compared with sampling it in every call.

    python tools/benchmarks/bench_kernel_cache.py

Whole networks as published (random weights), small batches, no gradients. Prints one line per
network and batch size: milliseconds with and without the cache, their ratio, and the ratio for
obtaining the kernels only.
"""
import argparse
import statistics
import time
from typing import Callable, List, Tuple

import torch
from torch import nn

from mmcontext.layers.continuous_kernel import ContinuousKernel
from mmcontext.models.backbones import CCNN, CKResNet


def sequence_net(blocks: int, channels: int, hidden: int, omega_0: float) -> CCNN:
    """A causal CCNN as for sequential MNIST."""
    return CCNN(1, channels, blocks, conv_cfg=dict(
        type='mmcontext.SeparableFlexConv1d', kernel_size='same', causal=True,
        kernel_cfg=dict(hidden_channels=hidden, omega_0=omega_0)))


# Name: network, input without the batch.
NETWORKS = {
    'CCNN of the sequential digits, 64 steps': (lambda: sequence_net(4, 48, 16, 100.), (1, 64)),
    'CCNN-4,140, 161 steps': (lambda: sequence_net(4, 140, 32, 750.), (1, 161)),
    'CCNN-4,140, 784 steps': (lambda: sequence_net(4, 140, 32, 2976.), (1, 784)),
    'CCNN-6,380, 784 steps': (lambda: sequence_net(6, 380, 64, 2976.), (1, 784)),
    'CCNN-4,140, 32x32': (lambda: CCNN(3, 140, 4), (3, 32, 32)),
    'CKResNet-50, 64x64': (lambda: CKResNet(50), (3, 64, 64)),
}


def set_cache(net: nn.Module, on: bool) -> List[ContinuousKernel]:
    """Switch the cache of every continuous kernel; returns them."""
    kernels = [m for m in net.modules() if isinstance(m, ContinuousKernel)]
    for kernel in kernels:
        kernel.cache = on
    return kernels


def milliseconds(run: Callable[[], object], device: str) -> float:
    """Time of one call."""
    start = time.perf_counter()
    run()
    if device == 'cuda':
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def compare(run: Callable[[], object], net: nn.Module, device: str,
            repeats: int) -> Tuple[float, float, float]:
    """Medians with and without the cache, and of the ratio; interleaved, so that noise on the
    machine affects both."""
    times = []
    for _ in range(repeats + 2):
        pair = []
        for cache in (True, False):
            set_cache(net, cache)
            pair.append(milliseconds(run, device))
        times.append(pair)
    times = times[2:]  # the first ones warm up
    return (*(statistics.median(column) for column in zip(*times)),
            statistics.median(sampled / cached for cached, sampled in times))


@torch.no_grad()
def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 4])
    parser.add_argument('--repeats', type=int, default=15)
    args = parser.parse_args()
    print('| network | batch | kept ms | sampled ms | ratio | ratio, kernels alone |')
    print('|---|---|---|---|---|---|')
    for name, (make, shape) in NETWORKS.items():
        torch.manual_seed(0)
        net = make().to(args.device).eval()
        for batch in args.batches:
            x = torch.randn(batch, *shape, device=args.device)
            found = set_cache(net, True)
            kept_y = net(x)[0]
            set_cache(net, False)
            torch.testing.assert_close(net(x)[0], kept_y)
            kept, sampled, ratio = compare(lambda: net(x), net, args.device, args.repeats)
            kernels = compare(lambda: [kernel.current() for kernel in found], net, args.device,
                              args.repeats)[2]
            print(f'| {name} | {batch} | {kept:.1f} | {sampled:.1f} | {ratio:.2f} | '
                  f'{kernels:.1f} |', flush=True)


if __name__ == '__main__':
    main()
