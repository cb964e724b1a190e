"""(b) Channel gates, average pools, group norms, convolutions of two maps, aggregations in parts:
the kernels against float64, and their times against torch's functions."""
import argparse
from typing import Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor

from gpu.norms import judge
from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops.avg_pool import avg_pool2d
from mmcontext.ops.channel_gate import explain_channel_gate, gate_by_convolution, gate_by_means
from mmcontext.ops.group_norm import group_norm
from mmcontext.ops.local_aggregation.in_parts import aggregate_in_parts
from mmcontext.ops.pair_conv import pair_conv

_TOLERANCE = {'float32': 1e-5, 'bfloat16': 2e-2, 'float16': 3e-3}
# [batch, channels, height, width]
_CHECKED = ((2, 16, 5, 7), (3, 48, 13, 9), (2, 528, 9, 8), (64, 64, 56, 56), (64, 512, 7, 7))
_TIMED = ((64, 64, 56, 56), (64, 128, 28, 28), (64, 256, 14, 14), (64, 512, 7, 7))
# The precision of float32 products on a GPU is up to cuBLAS: checked in half precision only.
_IN_HALVES = ('pair_conv', 'pair_conv, 2 groups')


class Case(NamedTuple):
    """An operator at one shape: operands, the first ``maps`` of them maps, and the function."""
    operands: List[Tensor]
    maps: int
    function: Callable[..., Tensor]


def cases(shape: Tuple[int, ...], device: str) -> Dict[str, Case]:
    """Operators by name, their operands in float32; functions take these and a method."""
    batch, channels, height, width = shape

    def tensor(*size: int) -> Tensor:
        value = torch.randn(size, device=device)
        return value.contiguous(memory_format=torch.channels_last) if len(size) == 4 else value

    x, other = tensor(*shape), tensor(*shape)
    logits, pairs = (tensor(channels, count * channels) / channels ** 0.5 for count in (1, 2))
    half, kernels = channels // 2, channels // 8 * 9
    pixels = (height + 4) * (width + 4)

    def of_means(m: Tensor, matrix: Tensor) -> Tensor:
        return (m.flatten(1) @ matrix)[:, :, None, None]

    return {
        'gate': Case([x, logits], 1, lambda x, matrix, method: gate_by_means(
            x, lambda m: of_means(m, matrix), None, method)),
        'split attention': Case([x, other, pairs], 2, lambda x, other, matrix, method:
                                gate_by_means(x, lambda m: of_means(m, matrix), other, method)),
        'gate of a convolution': Case(
            [x, tensor(channels, channels // 16, 3, 3)], 1,
            lambda x, weight, method: gate_by_convolution(x, weight, 16, pixels, method)),
        'avg_pool 3x3, stride 2': Case([x], 1, lambda x, method: avg_pool2d(
            x, 3, 2, 1, method=method)),
        'avg_pool 2x2, ceil': Case([x], 1, lambda x, method: avg_pool2d(
            x, 2, 2, 0, True, False, method)),
        # (The weight stays in float32, as under autocast.)
        "group norm of CoT's kernels": Case(
            [torch.randn(batch, kernels, height, width, device=device), tensor(kernels),
             tensor(kernels)], 1,
            lambda x, weight, bias, method: group_norm(
                x, channels // 8, weight.float(), bias.float(), method=method)),
        'pair_conv': Case([x, other, tensor(half, 2 * channels, 1, 1) / channels ** 0.5], 2,
                          lambda x, other, weight, method: pair_conv(x, other, weight, 1,
                                                                     method)),
        'pair_conv, 2 groups': Case([x, other, tensor(half, channels, 1, 1) / half ** 0.5], 2,
                                    lambda x, other, weight, method: pair_conv(
                                        x, other, weight, 2, method)),
        'aggregation of 2 parts': Case(
            [x, tensor(batch, channels // 8, 9, height, width)], 2,
            lambda x, w, method: aggregate_in_parts(
                x, w, 2, 3, padding=1, share='interleaved',
                backend='reference' if method == 'torch' else method)),
    }


def run(case: Case, dtype: torch.dtype, method: str, wide: bool) -> Tuple[Tensor, ...]:
    """Output and all gradients for operands rounded to ``dtype``, in float64 if ``wide``."""
    torch.manual_seed(1)
    leaves = [t.to(dtype) for t in case.operands]
    leaves = [(t.double() if wide else t).requires_grad_() for t in leaves]
    y = case.function(*leaves, method)
    grad = torch.randn(y.shape, device=y.device).to(dtype).to(y.dtype).contiguous(
        memory_format=torch.channels_last)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad))


def check(record: Record, device: str, method: str, shapes: Tuple[Tuple[int, ...], ...]) -> None:
    """All operators against float64 on the same device, and whether two runs are bit-identical."""
    worst: Dict[str, float] = {}
    for shape in shapes:
        torch.manual_seed(0)
        for name, case in cases(shape, device).items():
            for dtype in _TOLERANCE:
                what = f'{name} {shape} {dtype}'
                if dtype == 'float32' and name in _IN_HALVES:
                    continue
                with record.attempt(what):
                    runs = tuple(run(case, getattr(torch, dtype), method, False)
                                 for _ in range(2))
                    value = judge(record, what, runs, run(case, getattr(torch, dtype), 'torch',
                                                          True), _TOLERANCE[dtype])
                    worst[dtype] = max(worst.get(dtype, 0.), value)
    record.note(worst=worst)


def _steps(case: Case, method: str) -> Dict[str, Callable[[], object]]:
    leaves = [t.to(torch.bfloat16).requires_grad_() for t in case.operands]

    def forward() -> Tensor:
        return case.function(*leaves, method)

    y = forward()
    grad = torch.ones_like(y)
    return dict(forward=forward,
                backward=lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True))


def main(record: Record, options: argparse.Namespace) -> None:
    """Errors, then GPU microseconds in bf16 against torch's functions."""
    clocks = Device(options.device)
    method = 'torch' if options.dry_run else 'cuda'
    shapes = ((2, 32, 4, 4), )
    if not options.dry_run:
        sample = cases(shapes[0], options.device)['gate'].operands[0]
        reason = explain_channel_gate(sample)['refused'].get('cuda')
        if reason:
            record.fail('gates by the kernels', reason)
            return
        shapes = _TIMED
    check(record, options.device, method, shapes if options.dry_run else _CHECKED)
    for shape in shapes:
        for name, case in cases(shape, options.device).items():
            if name.startswith('aggregation'):
                continue
            with record.attempt(f'{name}, {shape}'):
                row = dict(operator=name, shape=shape)
                for way in (method, 'torch'):
                    steps = _steps(case, way)
                    row[way] = ' / '.join(f'{clocks.gpu_us(steps[mode], 10):.0f}'
                                          for mode in ('forward', 'backward'))
                record.row('gates', **row)
