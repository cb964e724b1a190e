"""(a) Every backend, direction, dtype and layout against float64 on the CPU."""
import argparse
import itertools
import math
import random
import time
from typing import List, NamedTuple, Tuple

import torch
from torch import Tensor

from gpu.backends import available, chosen, refusals
from gpu.record import Record
from gpu.timing import Device
from mmcontext.ops import fused_involution, local_aggregation

# Largest error over the largest value of the exact result.
TOLERANCE = {'float64': 1e-12, 'float32': 1e-6, 'float16': 1e-3, 'bfloat16': 8e-3}
DTYPES = tuple(TOLERANCE)
LAYOUTS = ('planes', 'pixels', 'mixed')  # of x and w: both plane by plane, both pixel by pixel
SHARES = ('block', 'interleaved')


class Case(NamedTuple):
    """One aggregation; pairs are (vertical, horizontal)."""
    batch: int
    channels: int
    groups: int
    size: Tuple[int, int]
    kernel: Tuple[int, int]
    stride: Tuple[int, int] = (1, 1)
    padding: Tuple[int, int] = (0, 0)
    dilation: Tuple[int, int] = (1, 1)

    @property
    def output(self) -> Tuple[int, int]:
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(
            self.size, self.kernel, self.stride, self.padding, self.dilation))

    @property
    def geometry(self) -> dict:
        return dict(kernel_size=self.kernel, stride=self.stride, padding=self.padding,
                    dilation=self.dilation)


def _square(batch: int, channels: int, groups: int, size: Tuple[int, int], kernel: int,
            stride: int = 1, dilation: int = 1, padding: int = -1) -> Case:
    padding = dilation * (kernel // 2) if padding < 0 else padding
    return Case(batch, channels, groups, size, *((value, ) * 2 for value in (
        kernel, stride, padding, dilation)))


# Kernel sizes and strides with specialised paths, then sizes at the edges of tiles, groups that
# do not fill a vector, and cases for the general kernels only.
CASES = [_square(2, 32, 2, (17, 19), kernel, stride, dilation)
         for kernel, stride, dilation in itertools.product((3, 5, 7), (1, 2), (1, 2))]
CASES += [
    _square(2, 64, 4, (56, 56), 7), _square(3, 48, 3, (28, 28), 7), _square(5, 64, 4, (14, 14), 7),
    _square(5, 64, 4, (7, 7), 7), _square(2, 64, 8, (14, 14), 3), _square(3, 64, 8, (7, 7), 3),
    _square(1, 16, 1, (33, 65), 7), _square(1, 16, 1, (1, 1), 7), _square(1, 16, 1, (2, 130), 5),
    _square(1, 32, 2, (131, 3), 3), _square(2, 32, 2, (30, 31), 7, padding=0),
    _square(2, 32, 2, (13, 14), 3, padding=4), _square(1, 64, 4, (29, 27), 7, 2),
    _square(2, 6, 6, (9, 11), 3), _square(2, 6, 2, (9, 11), 7), _square(1, 40, 2, (12, 12), 5),
    _square(1, 66, 1, (9, 9), 3), _square(1, 256, 2, (10, 10), 7), _square(2, 24, 3, (15, 16), 7),
    _square(2, 8, 2, (9, 10), 1), _square(2, 8, 2, (9, 10), 4, 2), _square(1, 16, 2, (21, 20), 9),
    _square(1, 16, 2, (21, 20), 3, 3), _square(1, 16, 2, (21, 20), 5, 1, 3),
    _square(1, 8, 1, (25, 26), 11, 2), _square(0, 16, 1, (8, 8), 7),
    Case(2, 16, 2, (14, 18), (3, 5), (1, 2), (1, 0), (2, 1)),
    Case(1, 32, 2, (12, 15), (7, 3), (2, 1), (3, 1), (1, 2)),
    Case(1, 4, 1, (9, 7), (1, 2), (3, 3)),
]
_TINY_CASES = [_square(1, 16, 1, (6, 5), 3), _square(1, 6, 2, (5, 4), 3, 2)]
SANITIZER_CASES = [*(CASES[index] for index in (0, 4, 8, 10, 14, 15)),
                   _square(1, 6, 2, (9, 11), 7)]


def random_cases(count: int, seed: int) -> List[Case]:
    """Random geometries."""
    draw = random.Random(seed)
    cases = []
    while len(cases) < count:
        groups = draw.choice((1, 2, 3, 4, 8))
        case = Case(draw.randint(1, 4), groups * draw.choice((1, 2, 4, 8, 8, 16, 16, 20)), groups,
                    (draw.randint(1, 40), draw.randint(1, 70)),
                    *(tuple(draw.choice(values) for _ in range(2)) for values in (
                        (1, 2, 3, 3, 5, 7, 7), (1, 1, 2, 3), (0, 1, 2, 3, 6), (1, 1, 2, 3))))
        if draw.random() < 0.6:  # the fast paths are square
            case = case._replace(kernel=case.kernel[:1] * 2, stride=case.stride[:1] * 2,
                                 padding=case.padding[:1] * 2, dilation=case.dilation[:1] * 2)
        if min(case.output) > 0:
            cases.append(case)
    return cases


def operands(case: Case, seed: int, device: str = 'cpu') -> Tuple[Tensor, ...]:
    """x, w and the gradient of y, in float64 but with values that every dtype can represent."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(channels: int, size: Tuple[int, int]) -> Tensor:
        value = torch.randn(case.batch, channels, *size, generator=generator)
        return value.bfloat16().half().double().to(device)

    taps = case.kernel[0] * case.kernel[1]
    return (tensor(case.channels, case.size),
            tensor(case.groups * taps, case.output).unflatten(1, (case.groups, taps)),
            tensor(case.channels, case.output))


def laid_out(values: Tuple[Tensor, ...], dtype: str, layout: str) -> Tuple[Tensor, ...]:
    """The operands in a dtype and a layout of LAYOUTS."""
    x, w, grad = (t.to(getattr(torch, dtype)) for t in values)
    if layout != 'planes':
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    if layout == 'pixels':
        w = w.flatten(1, 2).contiguous(memory_format=torch.channels_last).view_as(w)
    return x, w, grad


def results(case: Case, x: Tensor, w: Tensor, grad: Tensor, share: str,
            backend: str) -> Tuple[Tensor, ...]:
    """Output and both gradients."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = local_aggregation(x, w, **case.geometry, share=share, backend=backend)
    return (y.detach(), *torch.autograd.grad(y, (x, w), grad))


def exact(case: Case, values: Tuple[Tensor, ...], share: str) -> Tuple[Tensor, ...]:
    """The same in float64 on the CPU."""
    return results(case, *(t.cpu().double() for t in values), share, 'reference')


def error(actual: Tuple[Tensor, ...], expected: Tuple[Tensor, ...]) -> float:
    """Largest error over the largest value; infinite if any value is not finite."""
    worst = 0.
    for a, e in zip(actual, expected):
        if a.shape != e.shape:
            return float('inf')
        if e.numel():
            e = e.to(a.device)
            difference = ((a - e).abs().max() / e.abs().max().clamp_min(1e-30)).item()
            worst = max(worst, difference if math.isfinite(difference) else float('inf'))
    return worst


class Tally:
    """Number of cases and the worst error of every backend, dtype and layout."""

    def __init__(self, record: Record) -> None:
        self._record, self._lines = record, {}

    def add(self, backend: str, dtype: str, layout: str, what: str, value: float,
            slack: float = 1) -> None:
        tolerance = slack * TOLERANCE[dtype]
        line = self._lines.setdefault((backend, dtype, layout), [0, 0., tolerance])
        line[0] += 1
        line[1] = max(line[1], value)
        if not value <= tolerance:
            self._record.fail(f'{backend} {dtype} {layout} {what}',
                              f'error {value:.1e}, tolerance {tolerance:.1e}')

    def write(self) -> None:
        rows = [dict(backend=backend, dtype=dtype, layout=layout, cases=count, worst=worst,
                     tolerance=tolerance)
                for (backend, dtype, layout), (count, worst, tolerance) in self._lines.items()]
        self._record.content['tables']['correctness'] = rows
        self._record.note(cases=sum(row['cases'] for row in rows))


def check_backend(tally: Tally, record: Record, device: str, backend: str, cases: List[Case],
                  dtypes: Tuple[str, ...], seconds: float) -> None:
    """Check all combinations of the cases until time runs out."""
    stop = time.perf_counter() + seconds
    for index, (case, share) in enumerate(itertools.product(cases, SHARES)):
        if time.perf_counter() > stop:
            record.note(**{f'{backend}_cases_left_out': len(SHARES) * len(cases) - index})
            break
        values = operands(case, index, device)
        expected = tuple(t.to(device) for t in exact(case, values, share))
        for turn, (dtype, layout) in enumerate(itertools.product(dtypes, LAYOUTS)):
            what = f'{share} {tuple(case)}'
            with record.attempt(f'{backend} {dtype} {layout} {what}'):
                there = laid_out(values, dtype, layout)
                found = results(case, *there, share, backend)
                tally.add(backend, dtype, layout, what, error(found, expected))
                if (index + turn) % 5 == 0:
                    again = results(case, *there, share, backend)
                    if not all(torch.equal(a, b) for a, b in zip(found, again)):
                        record.fail(f'{backend} {dtype} {layout} {what}', 'two runs differ')
    tally.write()


def check_strides(tally: Tally, record: Record, device: str, backend: str, case: Case) -> None:
    """Operands that are expanded, sliced or transposed, and a sum's gradient (strides 0)."""
    for dtype in ('float32', 'bfloat16'):
        x, w, grad = laid_out(operands(case, 3, device), dtype, 'planes')
        forms = {
            'expanded x': (x[:1].expand_as(x), w, grad),
            'expanded w': (x, w[:, :, :1, :1, :1].expand_as(w), grad),
            'expanded gradient': (x, w, grad[:1, :1, :1, :1].expand_as(grad)),
            'sliced': (torch.cat((x, x), dim=3)[..., case.size[1]:], w,
                       torch.cat((grad, grad))[1:1 + case.batch]),
            'transposed': tuple(t.transpose(-1, -2).contiguous().transpose(-1, -2)
                                for t in (x, w, grad)),
        }
        for what, form in forms.items():
            with record.attempt(f'{backend} {dtype} {what}'):
                tally.add(backend, dtype, 'strided', what,
                          error(results(case, *form, 'block', backend),
                                exact(case, form, 'block')))


def check_streams_and_graphs(tally: Tally, record: Record, clocks: Device, backend: str,
                             cases: List[Case]) -> None:
    """A side stream, and a CUDA graph replayed with other values."""
    for case, (dtype, layout) in zip(cases, (('bfloat16', 'pixels'), ('float32', 'planes'),
                                             ('float32', 'planes'))):
        with record.attempt(f'{backend} {dtype} stream and graph'):
            first, second = (operands(case, seed, clocks.name) for seed in (1, 2))
            there = laid_out(first, dtype, layout)
            with clocks.side_stream():
                found = results(case, *there, 'block', backend)
            tally.add(backend, dtype, 'on a stream', str(case),
                      error(found, exact(case, first, 'block')))
            kept = []

            def step() -> None:
                kept[:] = results(case, *there, 'block', backend)

            replay = clocks.capture(step)
            for target, value in zip(there, second):
                target.copy_(value)
            replay()
            tally.add(backend, dtype, 'in a graph', str(case),
                      error(tuple(kept), exact(case, second, 'block')))


def check_large(tally: Tally, record: Record, device: str, backend: str, tiny: bool) -> None:
    """More than 2^31 elements in x and in w; the last image is compared."""
    case = _square(2 if tiny else 300, 64, 8, (4, 4) if tiny else (362, 362), 3)
    with record.attempt(f'{backend} over 2^31 elements'):
        def tensor(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=torch.bfloat16).uniform_(-1, 1)

        x, grad = (tensor(case.batch, case.channels, *case.size) for _ in range(2))
        w = tensor(case.batch, case.groups, 9, *case.output)
        found = [t[-1:].clone() for t in results(case, x, w, grad, 'block', backend)]
        tally.add(backend, 'bfloat16', 'over 2^31 elements', str(case), error(
            tuple(found), exact(case, tuple(t[-1:] for t in (x, w, grad)), 'block')))


def check_fused(tally: Tally, record: Record, device: str, backend: str,
                cases: List[Case]) -> None:
    """Output and all gradients of the fused form, with and without channel factors."""
    for case, gated in itertools.product(cases, (False, True)):
        generator = torch.Generator().manual_seed(6)
        taps, reduced = case.kernel[0] * case.kernel[1], 12

        def tensor(*shape: int) -> Tensor:
            value = torch.randn(shape, generator=generator).div(4)
            return value.bfloat16().half().double().to(device)

        x, _, grad = operands(case, 5, device)
        leaves = [x, tensor(case.batch, reduced, *case.output),
                  tensor(case.groups * taps, reduced), tensor(case.groups * taps)]
        leaves += [tensor(*x.shape[:2])] if gated else []

        def run(values: List[Tensor], cotangent: Tensor, forced: str) -> Tuple[Tensor, ...]:
            values = [t.detach().requires_grad_() for t in values]
            y = fused_involution(*values[:4], **case.geometry, backend=forced,
                                 scale=values[4] if gated else None)
            return (y.detach(), *torch.autograd.grad(y, values, cotangent))

        expected = run([t.cpu() for t in leaves], grad.cpu(), 'reference')
        for dtype, layout in itertools.product(('float32', 'bfloat16', 'float16'),
                                               ('planes', 'pixels')):
            what = f'{layout} gated={gated} {tuple(case)}'
            with record.attempt(f'{backend} {dtype} fused {what}'):
                form = torch.channels_last if layout == 'pixels' else torch.contiguous_format
                there = [t.to(getattr(torch, dtype)) for t in (*leaves, grad)]
                there = [t.contiguous(memory_format=form) if t.dim() == 4 else t for t in there]
                # In half precision w itself may be rounded in between.
                tally.add(backend, dtype, 'fused', what,
                          error(run(there[:-1], there[-1], backend), expected), slack=2)


def main(record: Record, options: argparse.Namespace) -> None:
    """The CUDA kernels, the automatic choice and torch's; Triton has a separate task."""
    device, tiny = options.device, options.dry_run
    # This fills torch.empty with NaN, so that elements that are never written show.
    torch.use_deterministic_algorithms(True, warn_only=True)
    taken = chosen(device)
    record.note(chosen=taken, refused=refusals(device))
    tally, clocks = Tally(record), Device(device)
    cases = _TINY_CASES if tiny else CASES + random_cases(40, 0)
    names = [name for name in available(device) if name != 'triton']
    if 'cuda' not in names and not tiny:
        record.fail('backend cuda', refusals(device)['cuda'])
    elif not tiny and taken != 'cuda':
        record.fail('choice of a backend', f'{taken} where cuda would serve')
    for backend in names:
        check_strides(tally, record, device, backend,
                      _TINY_CASES[1] if tiny else _square(2, 32, 2, (15, 18), 7))
        check_streams_and_graphs(tally, record, clocks, backend,
                                 _TINY_CASES[:1] if tiny else [CASES[i] for i in (13, 5, 14)])
        check_fused(tally, record, device, backend,
                    _TINY_CASES[:1] if tiny else [CASES[i] for i in (8, 10, 12, 14, 24)])
        if backend == 'cuda' or tiny:
            check_large(tally, record, device, backend, tiny)
        check_backend(tally, record, device, backend, cases if backend == 'cuda' else cases[::4],
                      DTYPES, 20 if backend == 'cuda' else 5)
    torch.use_deterministic_algorithms(False)
    tally.write()


def triton(record: Record, options: argparse.Namespace) -> None:
    """The Triton kernels, which compile for every geometry: as many cases as the time allows."""
    if 'triton' not in available(options.device):
        record.note(left_out=refusals(options.device)['triton'])
        return
    tally = Tally(record)
    cases = random_cases(20, 1)
    check_backend(tally, record, options.device, 'triton', cases, ('float32', 'bfloat16'), 15)
    tally.write()


def sanitized(record: Record, options: argparse.Namespace) -> None:
    """A few cases to run under compute-sanitizer."""
    tally, backend = Tally(record), options.backend
    cases = _TINY_CASES if options.dry_run else SANITIZER_CASES
    # If the time limit of the task ended the program, it would not report its findings.
    check_backend(tally, record, options.device, backend, cases, ('float32', 'bfloat16'),
                  0.4 * options.seconds)
    tally.write()
