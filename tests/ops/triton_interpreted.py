"""Runs the Triton kernels in Triton's interpreter and prints the errors as JSON.

Started by test_triton.py with ``TRITON_INTERPRET=1``, which triton reads when it is imported, so
it must not be set in the process of the other tests.
"""
import json

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton_cases import CASES, FUSED_CASES, case_id

from mmcontext.ops import fused_involution, local_aggregation
from mmcontext.ops.local_aggregation import Geometry
from mmcontext.ops.local_aggregation.reference import aggregate
from mmcontext.ops.local_aggregation.triton_backend import TritonBackend, fused_forward


def _relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


def _laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    return tensor.to(memory_format=torch.channels_last if channels_last
                     else torch.contiguous_format)


def _kernels(case: dict, dtype: torch.dtype) -> dict:
    geometry = Geometry(**case['geometry'])
    batch, channels, height, width = case['shape']
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    out_h, out_w = geometry.output_size(height, width)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = _laid_out(random(*case['shape']), case['channels_last'])
    w = _laid_out(random(batch, case['groups'] * taps, out_h, out_w), case['channels_last'])
    w = w.unflatten(1, (case['groups'], taps))
    grad = _laid_out(random(batch, channels, out_h, out_w), case['channels_last'])

    exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
    expected = aggregate(exact_x, exact_w, geometry)
    expected_gx, expected_gw = torch.autograd.grad(expected, (exact_x, exact_w), grad.double())
    backend = TritonBackend()
    outputs = {
        'forward': (backend.forward(x, w, geometry), expected),
        'grad_input': (backend.grad_input(grad, w, (height, width), geometry), expected_gx),
        'grad_weight': (backend.grad_weight(grad, x, case['groups'], geometry), expected_gw),
    }
    return {
        'errors': {name: _relative(*pair) for name, pair in outputs.items()},
        'dtypes': [str(actual.dtype) for actual, _ in outputs.values()],
        'channels_last': outputs['forward'][0].is_contiguous(memory_format=torch.channels_last),
    }


def _fused(case: dict, dtype: torch.dtype) -> dict:
    geometry = Geometry(**case['geometry'])
    batch, _, height, width = case['shape']
    outs = case['groups'] * geometry.kernel_size[0] * geometry.kernel_size[1]
    out_h, out_w = geometry.output_size(height, width)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = _laid_out(random(*case['shape']), case['channels_last'])
    r = _laid_out(random(batch, case['reduced'], out_h, out_w), case['channels_last'])
    weight = random(outs, case['reduced'])
    bias = random(outs) if case['optional'] else None
    scale = random(*case['shape'][:2]) if case['optional'] else None
    w = torch.einsum('oc,bchw->bohw', weight.double(), r.double())
    if bias is not None:
        w = w + bias.double()[:, None, None]
    expected = aggregate(x.double(), w.unflatten(1, (case['groups'], -1)), geometry)
    if scale is not None:
        expected = expected * scale.double()[:, :, None, None]
    actual = fused_forward(x, r, weight, bias, scale, geometry)
    return {'errors': {'forward': _relative(actual, expected)}, 'dtypes': [str(actual.dtype)],
            'channels_last': actual.is_contiguous(memory_format=torch.channels_last)}


def _fused_through_frontend() -> float:
    """Largest error of the fused gradients, float32, whose chunks also use the kernels."""
    operands = [torch.randn(shape, requires_grad=True)
                for shape in ((2, 4, 4, 5), (2, 3, 4, 5), (18, 3), (18, ), (2, 4))]
    x, r, weight, bias, scale = operands
    y = fused_involution(x, r, weight, bias, 3, padding=1, scale=scale, backend='triton')
    cotangent = torch.randn_like(y)
    actual = torch.autograd.grad(y, operands, cotangent)
    exact = [t.detach().double().requires_grad_() for t in operands]
    x, r, weight, bias, scale = exact
    w = torch.einsum('oc,bchw->bohw', weight, r) + bias[:, None, None]
    expected = torch.autograd.grad(
        aggregate(x * scale[:, :, None, None], w.unflatten(1, (2, 9)),
                  Geometry((3, 3), (1, 1), (1, 1), (1, 1), False)), exact, cotangent.double())
    return max(map(_relative, actual, expected))


def _through_frontend() -> dict:
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 2, 9, 5, 5, dtype=torch.float64, requires_grad=True)

    def run(a: Tensor, b: Tensor) -> Tensor:
        return local_aggregation(a, b, 3, padding=1, backend='triton')

    first = run(x, w)
    return {'gradcheck': torch.autograd.gradcheck(run, (x, w), fast_mode=True),
            'gradgradcheck': torch.autograd.gradgradcheck(run, (x, w), fast_mode=True),
            'same_bits': torch.equal(first, run(x, w)),
            'fused': _fused_through_frontend()}


def _beyond_int32() -> dict:
    """Images 2^31 or more elements apart, and planes as far apart within an image.

    The memory is reserved but only the few pages in use are ever touched.
    """
    # The interpreter would copy the whole storage back although it worked in place.
    interpreter.GridExecutor._restore_args_dev = lambda *args: None
    far = 2**31 + 8
    storage = torch.from_numpy(np.zeros(far + 64, dtype=np.float16))
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), False)
    backend = TritonBackend()
    errors = {}
    for name, shape, strides in (('batch', (2, 1, 3, 3), (far, 9, 3, 1)),
                                 ('image', (1, 2, 3, 3), (far, far, 3, 1))):
        x = storage.as_strided(shape, strides)
        x.copy_(torch.randn(shape))
        w = torch.randn(shape[0], 1, 9, 3, 3).half()
        grad = torch.randn(shape).half()
        grad_far = storage[18:].as_strided(shape, strides)
        grad_far.copy_(grad)
        exact_x, exact_w = x.double().requires_grad_(), w.double().requires_grad_()
        expected = aggregate(exact_x, exact_w, geometry)
        gx, gw = torch.autograd.grad(expected, (exact_x, exact_w), grad.double())
        errors[f'{name} forward'] = _relative(backend.forward(x, w, geometry), expected)
        errors[f'{name} grad_input'] = _relative(
            backend.grad_input(grad_far, w, (3, 3), geometry), gx)
        errors[f'{name} grad_weight'] = _relative(
            backend.grad_weight(grad_far, x, 1, geometry), gw)
    return errors


def main() -> None:
    results = {}
    for name, case in CASES.items():
        for dtype in case['dtypes']:
            results[case_id(name, dtype)] = _kernels(case, getattr(torch, dtype))
    for name, case in FUSED_CASES.items():
        for dtype in case['dtypes']:
            results[case_id(name, dtype)] = _fused(case, getattr(torch, dtype))
    results['frontend'] = _through_frontend()
    results['beyond_int32'] = _beyond_int32()
    print(json.dumps(results))


if __name__ == '__main__':
    main()
