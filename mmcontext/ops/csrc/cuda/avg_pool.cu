// Average pooling of channels-last maps, and its gradient. Every thread gathers 16-byte vectors of
// channels of its target. Options:
//   PASS      0 result, 1 gradient
//   STORAGE   StorageOf; 0, 2 or 3
//   KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W
#include "avg_pool.cuh"
#include "vectors.cuh"

namespace mmcontext {

// Windows that contain a given pixel, per axis.
constexpr int kSeeH = (KERNEL_H + STRIDE_H - 1) / STRIDE_H;
constexpr int kSeeW = (KERNEL_W + STRIDE_W - 1) / STRIDE_W;

// The number of pixels that count in a window: with ceil_mode it may reach beyond the padding.
DEVICE int extent(int window, int kernel, int stride, int pad, int size, bool include_pad) {
  int begin = window * stride - pad, end = begin + kernel;
  if (end > size + pad) end = size + pad;
  if (!include_pad) {
    if (begin < 0) begin = 0;
    if (end > size) end = size;
  }
  return end - begin;
}

DEVICE float share(const AvgPoolParameters& p, int row, int col) {
  return 1.f / static_cast<float>(
      extent(row, KERNEL_H, STRIDE_H, p.pad_h, p.rows, p.include_pad) *
      extent(col, KERNEL_W, STRIDE_W, p.pad_w, p.cols, p.include_pad));
}

DEVICE void pool(const AvgPoolParameters& p) {
  constexpr bool kBack = PASS == 1;
  constexpr int kRows = kBack ? kSeeH : KERNEL_H, kCols = kBack ? kSeeW : KERNEL_W;
  const int rows = kBack ? p.rows : p.out_rows, cols = kBack ? p.cols : p.out_cols;
  const int source_rows = kBack ? p.out_rows : p.rows, source_cols = kBack ? p.out_cols : p.cols;
  const int step = gridDim.x * blockDim.x;
  for (long long index = blockIdx.x * blockDim.x + threadIdx.x; index < p.count; index += step) {
    int rest = static_cast<int>(index);
    const int vector = rest % p.vectors;
    rest /= p.vectors;
    const int col = rest % cols;
    rest /= cols;
    const int row = rest % rows, image = rest / rows;
    // The first of the windows that can contain the pixel, or the first pixel of the window.
    const int first_row = kBack ? (row + p.pad_h) / STRIDE_H - (kSeeH - 1)
                                : row * STRIDE_H - p.pad_h;
    const int first_col = kBack ? (col + p.pad_w) / STRIDE_W - (kSeeW - 1)
                                : col * STRIDE_W - p.pad_w;
    Raw<16> raw[kRows * kCols];
    bool there[kRows * kCols];
#pragma unroll
    for (int i = 0; i < kRows * kCols; ++i) {
      const int from_row = first_row + i / kCols, from_col = first_col + i % kCols;
      there[i] = from_row >= 0 && from_row < source_rows && from_col >= 0 &&
                 from_col < source_cols;
      if (kBack) {
        there[i] = there[i] && row + p.pad_h < from_row * STRIDE_H + KERNEL_H &&
                   col + p.pad_w < from_col * STRIDE_W + KERNEL_W;
      }
      if (there[i]) {
        const long long pixel = (1ll * image * source_rows + from_row) * source_cols + from_col;
        raw[i] = load(p.source, (pixel * p.vectors + vector) * kVector);
      }
    }
    Values sum = {};
#pragma unroll
    for (int i = 0; i < kRows * kCols; ++i) {
      if (!there[i]) continue;
      const float factor = kBack ? share(p, first_row + i / kCols, first_col + i % kCols) : 1.f;
      const Values values = wide(raw[i]);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum.of[k] += values.of[k] * factor;
    }
    if (!kBack) {
      const float factor = share(p, row, col);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum.of[k] *= factor;
    }
    store(p.target, index * kVector, sum);
  }
}

}  // namespace mmcontext

extern "C" __global__ void __launch_bounds__(256) avg_pool(const mmcontext::AvgPoolParameters p) {
  mmcontext::pool(p);
}
