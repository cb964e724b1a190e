"""Compiles the Triton kernels for a GPU that need not be present; prints the sizes as JSON.

Started by test_triton.py: ``python triton_compiled.py COMPUTE_CAPABILITY``.
"""
import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmcontext.ops.local_aggregation import triton_kernels

_POINTERS = {'x', 'w', 'y', 'gx', 'gy', 'gw', 'r', 'weight', 'bias', 'scale'}
_K7 = dict(KH=7, KW=7, SH=1, SW=1, PH=3, PW=3, DH=1, DW=1, INTERLEAVED=False, BLOCK_C=16)
_K3 = dict(KH=3, KW=3, SH=2, SW=2, PH=2, PW=2, DH=2, DW=2, INTERLEAVED=True, BLOCK_C=8)
_DTYPES = {'fp16': tl.float16, 'bf16': tl.bfloat16, 'fp32': tl.float32, 'fp64': tl.float64}


def _compile(name: str, dtype: str, capability: int, wide: bool, **constants) -> int:
    """Size in bytes of the machine code; with ``wide`` for 64-bit strides and offsets."""
    kernel = getattr(triton_kernels, name)
    constants['IDX'] = tl.int64 if wide else tl.int32
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = 'constexpr'
        elif argument in _POINTERS:
            signature[argument] = f'*{dtype}'
        else:
            signature[argument] = 'i64' if wide and '_s' in argument else 'i32'
    compiled = triton.compile(ASTSource(kernel, signature, constants),
                              target=GPUTarget('cuda', capability, 32))
    return len(compiled.asm['cubin'])


def main() -> None:
    capability = int(sys.argv[1])
    sizes = {}
    for dtype, geometry, wide in (('fp32', _K7, False), ('fp16', _K3, False),
                                  ('bf16', _K3, False), ('fp64', _K3, False),
                                  ('fp32', _K3, True)):
        accumulator = tl.float64 if dtype == 'fp64' else tl.float32
        common = dict(geometry, ACC=accumulator, BLOCK_P=128)
        tag = f'{dtype}{"-wide" if wide else ""}'
        for name in ('forward_kernel', 'grad_input_kernel'):
            sizes[f'{name}-{tag}'] = _compile(name, dtype, capability, wide, **common)
        sizes[f'grad_weight_kernel-{tag}'] = _compile(
            'grad_weight_kernel', dtype, capability, wide, CHUNKS=1 if geometry is _K7 else 3,
            **common)
        if dtype != 'fp64':
            fused = {key: value for key, value in geometry.items() if key != 'INTERLEAVED'}
            sizes[f'fused_forward_kernel-{tag}'] = _compile(
                'fused_forward_kernel', dtype, capability, wide, HAS_BIAS=True,
                HAS_SCALE=True, DOT=_DTYPES[dtype], BLOCK_P=32, BLOCK_K=16, BLOCK_R=32, R_BLOCKS=2,
                **fused)
    print(json.dumps(sizes))


if __name__ == '__main__':
    main()
