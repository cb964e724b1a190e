"""Baseline for the GPU table: aggregation with one thread per output, in CuPy.

The scheme of the published involution and CoT code (each thread rereads its whole neighbourhood,
float32 only), reimplemented for comparison. It is a baseline for the benchmarks, not a backend of
the library. Not yet timed: no GPU was available when it was written.
"""
from typing import Tuple

import cupy
import torch
from torch import Tensor

_THREADS = 256

# Arguments that the three kernels share; n is the number of elements written.
_ARGUMENTS = ('long long n, int channels, int groups, int height, int width, int out_h, int out_w, '
              'int kernel, int stride, int padding, int dilation, bool interleaved')

_SOURCE = '''
#define GROUP(c) (interleaved ? (c) % groups : (c) / (channels / groups))
#define W_AT(b, g, kh, kw, oh, ow) \\
    w[((((long long)(b) * groups + (g)) * kernel * kernel + (kh) * kernel + (kw)) * out_h + (oh)) \\
      * out_w + (ow)]
#define X_AT(t, b, c, h, q) t[(((long long)(b) * channels + (c)) * height + (h)) * width + (q)]
#define Y_AT(t, b, c, h, q) t[(((long long)(b) * channels + (c)) * out_h + (h)) * out_w + (q)]

extern "C" __global__ void forward(const float* x, const float* w, float* y, ARGUMENTS) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int ow = i % out_w, oh = i / out_w % out_h;
    int c = i / out_w / out_h % channels, b = i / out_w / out_h / channels;
    float sum = 0;
    for (int kh = 0; kh < kernel; ++kh)
        for (int kw = 0; kw < kernel; ++kw) {
            int h = oh * stride + kh * dilation - padding;
            int q = ow * stride + kw * dilation - padding;
            if (h >= 0 && h < height && q >= 0 && q < width)
                sum += W_AT(b, GROUP(c), kh, kw, oh, ow) * X_AT(x, b, c, h, q);
        }
    y[i] = sum;
}

extern "C" __global__ void grad_input(const float* gy, const float* w, float* gx, ARGUMENTS) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int q = i % width, h = i / width % height;
    int c = i / width / height % channels, b = i / width / height / channels;
    float sum = 0;
    for (int kh = 0; kh < kernel; ++kh)
        for (int kw = 0; kw < kernel; ++kw) {
            int top = h + padding - kh * dilation, left = q + padding - kw * dilation;
            if (top < 0 || left < 0 || top % stride || left % stride) continue;
            int oh = top / stride, ow = left / stride;
            if (oh < out_h && ow < out_w)
                sum += W_AT(b, GROUP(c), kh, kw, oh, ow) * Y_AT(gy, b, c, oh, ow);
        }
    gx[i] = sum;
}

extern "C" __global__ void grad_weight(const float* gy, const float* x, float* gw, ARGUMENTS) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int ow = i % out_w, oh = i / out_w % out_h;
    long long rest = i / out_w / out_h;
    int kw = rest % kernel, kh = rest / kernel % kernel;
    int g = rest / kernel / kernel % groups, b = rest / kernel / kernel / groups;
    int h = oh * stride + kh * dilation - padding, q = ow * stride + kw * dilation - padding;
    float sum = 0;
    if (h >= 0 && h < height && q >= 0 && q < width)
        for (int j = 0; j < channels / groups; ++j) {
            int c = interleaved ? g + j * groups : g * (channels / groups) + j;
            sum += Y_AT(gy, b, c, oh, ow) * X_AT(x, b, c, h, q);
        }
    gw[i] = sum;
}
'''.replace('ARGUMENTS', _ARGUMENTS)

_MODULE = cupy.RawModule(code=_SOURCE)


def _launch(name: str, a: Tensor, b: Tensor, out: Tensor, channels: int, groups: int,
            size: Tuple[int, int], out_size: Tuple[int, int], kernel: int, stride: int,
            padding: int, dilation: int, interleaved: bool) -> Tensor:
    for tensor in (a, b):
        if tensor.dtype != torch.float32 or not tensor.is_cuda or not tensor.is_contiguous():
            raise ValueError('the CuPy baseline takes contiguous float32 CUDA tensors, got '
                             f'{tensor.dtype} on {tensor.device}')
    integers = (channels, groups, *size, *out_size, kernel, stride, padding, dilation)
    with cupy.cuda.ExternalStream(torch.cuda.current_stream(a.device).cuda_stream):
        _MODULE.get_function(name)(
            (-(-out.numel() // _THREADS), ), (_THREADS, ),
            (a.data_ptr(), b.data_ptr(), out.data_ptr(), cupy.int64(out.numel()),
             *(cupy.int32(value) for value in integers), cupy.bool_(interleaved)))
    return out


class _Aggregation(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, kernel: int, stride: int, padding: int,
                dilation: int, interleaved: bool) -> Tensor:
        ctx.save_for_backward(x, w)
        out_size = tuple(w.shape[-2:])
        ctx.options = (x.shape[1], w.shape[1], tuple(x.shape[-2:]), out_size, kernel, stride,
                       padding, dilation, interleaved)
        return _launch('forward', x, w, x.new_empty(*x.shape[:2], *out_size), *ctx.options)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, w = ctx.saved_tensors
        grad = grad.contiguous()
        return (_launch('grad_input', grad, w, torch.empty_like(x), *ctx.options),
                _launch('grad_weight', grad, x, torch.empty_like(w), *ctx.options),
                None, None, None, None, None)


def local_aggregation(x: Tensor, w: Tensor, kernel_size: int, stride: int = 1, padding: int = 0,
                      dilation: int = 1, share: str = 'block') -> Tensor:
    """Aggregation as :func:`mmcontext.ops.local_aggregation`, square float32 kernels only."""
    return _Aggregation.apply(x, w, kernel_size, stride, padding, dilation,
                              share == 'interleaved')
