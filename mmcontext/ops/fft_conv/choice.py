"""Which of the two ways to compute a convolution is cheaper: predicted or measured.

A fixed threshold on the kernel size is wrong on most machines: the crossover shifts by an order
of magnitude with the number of axes, depth-wise or full, the dtype, the device and whether
gradients are needed. A cost model takes these into account, and makes the same choice in every
run. On request both ways are timed instead, once per bucket of shapes, on the actual tensors, and
the result is remembered for the life of the process.
"""
import math
import time
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from mmcontext.ops.arguments import remembered
from mmcontext.ops.choice import Explanation, explanation, requested
from mmcontext.ops.fft_conv.functional import direct_conv_impl, fft_conv_impl
from mmcontext.ops.fft_conv.geometry import (
    ConvGeometry,
    IntOrTuple,
    Padding,
    conv_geometry,
    fft_size,
)
from mmcontext.ops.layout import is_channels_last
from mmcontext.ops.tracing import in_torch_func, is_capturing, is_compiling, is_recording

METHOD_VARIABLE = 'MMCONTEXT_CONV_METHOD'
_MEASURE = 'measure'
# 'model' is a former name of 'auto'.
_METHODS = (_MEASURE, 'fft', 'direct', 'model')
_IMPLEMENTATIONS = {'fft': fft_conv_impl, 'direct': direct_conv_impl}


class _Costs(NamedTuple):
    """Nanoseconds of the cost model, only right relative to each other; pairs are (depth-wise,
    full).

    Attributes:
        direct: Per multiply-add of the direct way, at inference.
        grad: The same with gradients; depth-wise ones are an order of magnitude slower than the
            forward pass on a CPU.
        transform: Per element, axis and doubling of a transform.
        product: Per product of spectra.
        call: Per call by FFT.
        fft_grad: How many times as long the FFT way takes with gradients.
        element: Per output element of the direct way, at inference.
        grad_1d: As ``grad``, for one axis; None for the same.
        element_grad_1d: As ``element``, for one axis with gradients.
        long_grad: As the full ``grad`` of more than one axis, for kernels with a side beyond
            ``fast_side``.
    """
    direct: Tuple[float, float]
    grad: Tuple[float, float]
    transform: float
    product: Tuple[float, float]
    call: float = 0.
    fft_grad: float = 3.
    element: float = 0.
    grad_1d: Optional[Tuple[float, float]] = None
    element_grad_1d: Tuple[float, float] = (0., 0.)
    long_grad: float = math.nan
    fast_side: float = math.inf


_COSTS = {
    # Fitted to 62 geometries, each with and without gradients, on one thread.
    'cpu': _Costs(direct=(0.023, 0.0135), grad=(1.05, 0.04), transform=0.146, product=(0.83, 1.3),
                  call=34e3, fft_grad=4., element=1.4, grad_1d=(0.57, 0.08),
                  element_grad_1d=(5.6, 0.), long_grad=0.125, fast_side=13),
    # The transform's is from a profile of a CKResNet-50 step on an H200 (with the copies, casts and
    # products around it, 9 ms for 9e7 points); the others are estimates: a depth-wise kernel loads
    # two operands per multiply-add from its cache.
    'cuda': _Costs(direct=(4e-4, 4e-5), grad=(1.2e-3, 1.2e-4), transform=0.75e-3,
                   product=(1e-3, 1e-3)),
}
# A method predicted to take this long, and this many times as long as the other, is not timed.
_TRIAL_LIMIT_SECONDS = 0.05
_TRIAL_LIMIT_RATIO = 6.0
_TRIAL_BUDGET_SECONDS = 0.2
_TRIALS = 10

_measured: Dict[tuple, 'MethodChoice'] = {}


class MethodChoice(NamedTuple):
    """The way chosen and why; the times (seconds) are measured or predicted, see ``reason``."""
    method: str
    reason: str
    fft_seconds: Optional[float] = None
    direct_seconds: Optional[float] = None


def clear_measurements() -> None:
    """Forget the timings, e.g. after ``torch.set_num_threads``."""
    _measured.clear()


def _no_trial_reason(x: Tensor) -> Optional[str]:
    """Why the two ways cannot be timed now, or None."""
    if is_compiling():
        return 'torch.compile is tracing'
    if type(x) not in (Tensor, torch.nn.Parameter) or x.device.type == 'meta':
        return 'x holds no data'
    if in_torch_func():
        return 'torch.func is transforming'
    if torch.are_deterministic_algorithms_enabled():
        return 'deterministic algorithms are enabled'
    if is_capturing(x):
        return 'a CUDA graph is being captured'
    return None


def _wants_grad(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def predict_seconds(batch: int, channels: int, out_channels: int, geometry: ConvGeometry,
                    device: str = 'cpu', grad: bool = False) -> Dict[str, float]:
    """Cost model: rough times of both ways, good for their ratio; `grad`: including gradients."""
    cost = _COSTS.get(device, _COSTS['cuda'])
    fan_in = channels // geometry.groups
    full = int(fan_in > 1)
    planes = batch * out_channels * fan_in
    taps = math.prod(geometry.kernel)
    outputs = batch * out_channels * math.prod(geometry.out_size)
    if not grad:
        each, further = cost.direct[full], cost.element
    elif len(geometry.kernel) == 1:
        each, further = (cost.grad_1d or cost.grad)[full], cost.element_grad_1d[full]
    else:
        slow = full and max(geometry.kernel) > cost.fast_side
        each, further = cost.long_grad if slow else cost.grad[full], 0.
    direct = outputs * (fan_in * taps * each + further)
    points = math.prod(fft_size(geometry))
    transforms = batch * channels + batch * out_channels + out_channels * fan_in
    fft = (transforms * points * math.log2(max(points, 2)) * len(geometry.kernel)
           * cost.transform + planes * points / 2 * cost.product[full] + cost.call)
    return {'fft': fft * (cost.fft_grad if grad else 1) * 1e-9, 'direct': direct * 1e-9}


# A layer asks the same question at every step.
_predicted = remembered(predict_seconds)


def _side_bucket(n: int) -> int:
    """Exact when small; 16 steps per doubling from 16 on, as cropped kernels drift."""
    return n if n <= 16 else round(16 * math.log2(n))


def _bucket(x: Tensor, weight: Tensor, geometry: ConvGeometry) -> tuple:
    grad = torch.is_grad_enabled()
    return (str(x.device), x.dtype, weight.dtype, torch.get_num_threads(),
            grad and x.requires_grad, grad and weight.requires_grad,
            x.dim() == 4 and is_channels_last(x),
            round(4 * math.log2(max(x.shape[0], 1))), x.shape[1], weight.shape[0],
            geometry.groups, tuple(round(4 * math.log2(n)) for n in geometry.size),
            tuple(_side_bucket(k) for k in geometry.kernel), geometry.stride, geometry.dilation,
            tuple(round(4 * math.log2(1 + max(pad))) for pad in geometry.padding))


def _as_it_is(saved: Tensor) -> Tensor:
    return saved


def _measure(x: Tensor, weight: Tensor, geometry: ConvGeometry) -> Dict[str, float]:
    """Shortest of a few runs of each way, in seconds.

    The ways alternate, so that noise on the machine affects both; the first turn, in which
    libraries make their plans, is a warm-up.
    """
    grad = _wants_grad(x, weight)
    x = x.detach().requires_grad_(grad and x.requires_grad)
    weight = weight.detach().requires_grad_(grad and weight.requires_grad)
    inputs = [t for t in (x, weight) if t.requires_grad]

    def timed(implementation: Callable) -> float:
        start = time.perf_counter()
        out = implementation(x, weight, None, geometry)
        if grad:
            torch.autograd.grad(out, inputs, torch.ones_like(out))
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    best = dict.fromkeys(_IMPLEMENTATIONS, math.inf)
    spent, turns = 0., 0
    # The caller's hooks, such as those of gradient checkpointing, must not see these tensors.
    with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        while turns < 2 or (turns <= _TRIALS and spent < _TRIAL_BUDGET_SECONDS):
            for name, implementation in _IMPLEMENTATIONS.items():
                seconds = timed(implementation)
                spent += seconds
                if turns:
                    best[name] = min(best[name], seconds)
            turns += 1
    return best


def _cheaper(seconds: Dict[str, float], reason: str) -> MethodChoice:
    fft, direct = seconds['fft'], seconds['direct']
    return MethodChoice('fft' if fft <= direct else 'direct', reason, fft, direct)


def choose_method(x: Tensor, weight: Tensor, geometry: ConvGeometry,
                  method: Optional[str] = None) -> MethodChoice:
    """Pick 'fft' or 'direct' for checked arguments; see :func:`convolve`."""
    policy, source = requested('method', method, METHOD_VARIABLE, _METHODS)
    if policy in _IMPLEMENTATIONS:
        return MethodChoice(policy, f'forced by {source}')
    if is_recording():
        return MethodChoice('direct', 'a graph is being exported, and other runtimes have no FFT')
    predicted = _predicted(x.shape[0], x.shape[1], weight.shape[0], geometry, x.device.type,
                           _wants_grad(x, weight))
    obstacle = _no_trial_reason(x)
    if policy != _MEASURE or obstacle or x.numel() == 0:
        why = obstacle or 'x is empty'
        if policy != _MEASURE:
            why = f'asked for by {source}' if source else 'the default'
        return _cheaper(predicted, f'predicted by the cost model ({why})')
    key = _bucket(x, weight, geometry)
    if key not in _measured:
        slower = max(predicted, key=predicted.get)
        ratio = predicted[slower] / max(min(predicted.values()), 1e-12)
        if predicted[slower] > _TRIAL_LIMIT_SECONDS and ratio > _TRIAL_LIMIT_RATIO:
            why = f'{slower} is {ratio:.0f}x too slow to try'
            _measured[key] = _cheaper(predicted, f'predicted by the cost model ({why})')
        else:
            _measured[key] = _cheaper(_measure(x, weight, geometry), 'measured on these shapes')
    return _measured[key]


def convolve(x: Tensor,
             weight: Tensor,
             bias: Optional[Tensor] = None,
             stride: IntOrTuple = 1,
             padding: Padding = 0,
             dilation: IntOrTuple = 1,
             groups: int = 1,
             method: Optional[str] = None) -> Tensor:
    """Convolve directly or by FFT, whichever is cheaper for these tensors.

    Args:
        x, weight, bias, stride, padding, dilation, groups: See
            :func:`mmcontext.ops.fft_conv.fft_conv`.
        method (str, optional): 'auto' takes the way that a cost model predicts to be cheaper,
            so that every run makes the same choice. 'measure' times both ways for every new
            bucket of shapes (forward, and backward if gradients are needed) and remembers the
            winner. 'fft' and 'direct' force a way. None takes the environment variable
            ``MMCONTEXT_CONV_METHOD``, or else 'auto'. 'measure' becomes 'auto' under
            ``torch.compile``, in a CUDA graph and with
            ``torch.use_deterministic_algorithms``, and both become 'direct' in an export.
            Defaults to None.

    Returns:
        Tensor: [B, O, *out] with the dtype of ``x``.
    """
    geometry = conv_geometry(x, weight, bias, stride, padding, dilation, groups)
    implementation = _IMPLEMENTATIONS[choose_method(x, weight, geometry, method).method]
    return implementation(x, weight, bias, geometry)


def explain_method(x: Tensor,
                   weight: Tensor,
                   stride: IntOrTuple = 1,
                   padding: Padding = 0,
                   dilation: IntOrTuple = 1,
                   groups: int = 1,
                   method: Optional[str] = None) -> Explanation:
    """Which way :func:`convolve` would take with these arguments, and why not the other.

    Returns:
        ``chosen``: 'fft' or 'direct'; ``refused``: the other -> reason, with the times compared.
    """
    geometry = conv_geometry(x, weight, None, stride, padding, dilation, groups)
    choice = choose_method(x, weight, geometry, method)
    other = 'direct' if choice.method == 'fft' else 'fft'
    reason = choice.reason
    if choice.fft_seconds is not None:
        reason += (f': fft {1e3 * choice.fft_seconds:.3g} ms, '
                   f'direct {1e3 * choice.direct_seconds:.3g} ms')
    return explanation(choice.method, {other: reason})
