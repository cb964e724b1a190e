"""(e) Grouped convolutions of pyramids and CoT blocks: correctness and speed of each way."""
import argparse
import concurrent.futures
import itertools
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor

from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops import explain_grouped_conv, grouped_conv2d

_TOLERANCE = {'bfloat16': 8e-3, 'float16': 1e-3}
_WAYS = ('direct', 'dense', 'grouped')
_AT_ONCE = 12  # geometries whose kernels are compiled concurrently


class Geometry(NamedTuple):
    """A convolution with padding that keeps the size at stride 1."""
    channels: int
    outputs: int
    kernel: int
    groups: int
    stride: int
    size: int

    def operands(self, batch: int, dtype: torch.dtype, device: str) -> Tuple[Tensor, Tensor]:
        """x, channels-last, and the weight."""
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(batch, self.channels, self.size, self.size, device=device,
                        generator=generator).to(dtype)
        weight = torch.randn(self.outputs, self.channels // self.groups, self.kernel, self.kernel,
                             device=device, generator=generator).to(dtype)
        return x.contiguous(memory_format=torch.channels_last), weight


# The most important first: from PyConvHGResNet-50 (32 and 64 groups), PyConvResNet-50,
# CoTNeXt-50 (8 groups) and CoTNet-50 (kernel 3, 4 groups).
GEOMETRIES = [Geometry(*values) for values in (
    (128, 32, 9, 32, 1, 56), (128, 64, 7, 8, 1, 28), (64, 16, 9, 16, 1, 56),
    (128, 32, 9, 32, 2, 112), (128, 32, 7, 32, 1, 56), (128, 32, 5, 32, 1, 56),
    (128, 32, 3, 32, 1, 56), (256, 128, 7, 64, 1, 28), (256, 64, 5, 64, 1, 28),
    (256, 64, 3, 32, 1, 28), (512, 256, 5, 64, 1, 14), (512, 256, 3, 32, 1, 14),
    (1024, 1024, 3, 32, 1, 7), (64, 16, 7, 8, 1, 56), (64, 16, 5, 4, 1, 56),
    (128, 32, 5, 4, 1, 28), (96, 96, 3, 8, 1, 56), (192, 192, 3, 8, 1, 28),
    (384, 384, 3, 8, 1, 14), (768, 768, 3, 8, 1, 7), (64, 64, 3, 4, 1, 56),
    (128, 128, 3, 4, 1, 28), (256, 256, 3, 4, 1, 14), (512, 512, 3, 4, 1, 7),
    (256, 128, 5, 4, 1, 14), (128, 32, 7, 32, 2, 112), (128, 32, 5, 32, 2, 112),
    (128, 32, 3, 32, 2, 112), (256, 128, 7, 64, 2, 56), (256, 64, 5, 64, 2, 56),
    (256, 64, 3, 32, 2, 56), (512, 256, 5, 64, 2, 28), (512, 256, 3, 32, 2, 28),
    (64, 16, 9, 16, 2, 112), (64, 16, 7, 8, 2, 112), (64, 16, 5, 4, 2, 112),
    (128, 64, 7, 8, 2, 56), (128, 32, 5, 4, 2, 56), (1024, 1024, 3, 32, 2, 14),
    (256, 128, 5, 4, 2, 28))]
# Sizes that are not multiples of a tile.
_ODD = [Geometry(*values) for values in (
    (128, 32, 9, 32, 1, 17), (128, 32, 9, 32, 2, 31), (64, 16, 7, 8, 2, 13), (64, 16, 5, 4, 1, 9),
    (128, 64, 7, 8, 1, 5), (96, 96, 3, 8, 2, 11), (1024, 1024, 3, 32, 2, 3))]
_TINY = [Geometry(16, 8, 3, 4, 2, 8), Geometry(16, 8, 5, 4, 1, 6)]


def run(x: Tensor, weight: Tensor, of: Geometry, way: str) -> Tensor:
    """The convolution by one way; on a CPU (a dry run) by torch's own."""
    return grouped_conv2d(x, weight, None, of.stride, of.kernel // 2, 1, of.groups,
                          way if x.is_cuda else 'grouped')


def serves(of: Geometry, way: str, device: str) -> bool:
    """Whether a way can be used, and fast enough to be timed."""
    if way != 'direct':
        # cuDNN's grouped kernels take milliseconds for the narrowest groups.
        return way == 'dense' or of.channels // of.groups >= 12
    if device == 'cpu':
        return True
    x, weight = of.operands(1, torch.bfloat16, device)
    refused = explain_grouped_conv(x, weight, of.groups, stride=of.stride)['refused']
    return 'us are' in refused.get('direct', 'us are')


def results(x: Tensor, weight: Tensor, cotangent: Optional[Tensor], of: Geometry,
            way: str) -> List[Tensor]:
    """y and the gradients of x and weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = run(x, weight, of, way)
    cotangent = torch.ones_like(y) if cotangent is None else cotangent
    return [y.detach(), *torch.autograd.grad(y, (x, weight), cotangent)]


def wrong(of: Geometry, way: str, dtype: str, device: str) -> Optional[str]:
    """What is wrong with a way, compared with float32; None if nothing is."""
    x, weight = of.operands(3, getattr(torch, dtype), device)
    with torch.no_grad():
        cotangent = torch.randn_like(run(x, weight, of, 'grouped'))
    exact = results(x.float(), weight.float(), cotangent.float(), of, 'grouped')
    found = results(x, weight, cotangent, of, way)
    for name, a, e in zip(('y', 'x', 'weight'), found, exact):
        error = ((a - e).abs().max() / e.abs().max()).nan_to_num(1e9).item()
        if error > _TOLERANCE[dtype]:
            return f'{name}: error {error:.1e}'
    again = results(x, weight, cotangent, of, way)
    if way == 'direct' and not all(map(torch.equal, found, again)):
        return 'two runs differ'
    return None


def check(record: Record, cases: Sequence[Tuple[Geometry, str]], device: str
          ) -> Set[Tuple[Geometry, str]]:
    """Those of (geometry, dtype) for which the direct way is correct; kernels are compiled
    concurrently."""
    cases = [case for case in cases if serves(case[0], 'direct', device)]
    def fault_of(case: Tuple[Geometry, str]) -> Optional[str]:
        try:
            return wrong(case[0], 'direct', case[1], device)
        except RuntimeError as error:
            return f'{type(error).__name__}: {error}'[:300]

    with concurrent.futures.ThreadPoolExecutor(8 if device == 'cuda' else 1) as pool:
        faults = list(pool.map(fault_of, cases))
    for (of, dtype), fault in zip(cases, faults):
        if fault:
            record.fail(f'direct, {tuple(of)}, {dtype}', fault)
        else:
            record.row('grouped_right', geometry=tuple(of), dtype=dtype)
    return {case for case, fault in zip(cases, faults) if fault is None}


def steps(of: Geometry, way: str, batch: int, device: str) -> Dict[str, Callable[[], object]]:
    """Name -> what is timed."""
    x, weight = of.operands(batch, torch.bfloat16, device)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = run(x, weight, of, way)
    cotangent = torch.randn_like(y)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(x, weight, of, way)

    def gradient(of_what: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(y, of_what, cotangent, retain_graph=True)

    return {'forward': forward, 'grad_x': gradient(x), 'grad_weight': gradient(weight)}


def main(record: Record, options: argparse.Namespace) -> None:
    """GPU microseconds of each direction, batch 64, bfloat16, channels-last."""
    torch.backends.cudnn.allow_tf32 = False
    clocks = Device(options.device)
    geometries = _TINY if options.dry_run else GEOMETRIES
    for first in range(0, len(geometries), _AT_ONCE):
        some = geometries[first:first + _AT_ONCE]
        right = check(record, [(of, 'bfloat16') for of in some], options.device)
        for of, way in itertools.product(some, _WAYS):
            if not ((of, 'bfloat16') in right if way == 'direct'
                    else serves(of, way, options.device)):
                continue
            with record.attempt(f'{way}, {tuple(of)}'):
                times = {name: round(clocks.gpu_us(step, 7), 1) for name, step in
                         steps(of, way, 2 if options.dry_run else 64, options.device).items()}
                record.row('grouped', way=way, dtype='bfloat16', geometry=tuple(of), **times,
                           both=round(sum(times.values()), 1))
    if not options.dry_run:
        check(record, [*((of, 'bfloat16') for of in _ODD), (_ODD[0], 'float16'),
                       (_ODD[1], 'float16')], options.device)
