// Gradient of w: every thread computes 4 columns of one kernel row's taps and sums over the
// channels of a group. Tiles of x and of the gradient of y are in shared memory.
#pragma once

#include "tile.cuh"

namespace mmcontext {

DEVICE void grad_weight(const TiledParameters& p) {
  char* map = shared_memory();
  char* gradient = map + p.kernel_offset;
  Block at = this_block(p);
  const int quads = p.tile_groups * p.tile_rows * p.tile_quads;
  const int mine = threadIdx.x, kh = mine / quads < KERNEL ? mine / quads : KERNEL - 1;
  const int n = mine - kh * quads < quads ? mine - kh * quads : quads - 1;
  const int line = n / p.tile_quads, quad = n - line * p.tile_quads;
  const int group = line / p.tile_rows, row = line - group * p.tile_rows;
  const char* from = map + 16 * (group * p.map.group_pitch +
                                 (row * STRIDE + kh * DILATION) * p.map.row_pitch +
                                 unit_of<kQuad>(quad * kQuad));
  const char* beside = gradient + 16 * (group * p.gradient.group_pitch +
                                        row * p.gradient.row_pitch + unit_of<4>(4 * quad));
  float sum[KERNEL][4] = {};
  for (at.chunk = 0; at.chunk < p.shared; at.chunk += CHANNELS) {
    if (at.chunk) block_barrier();
    stage_map<kQuad, SOURCE_LAYOUT, SOURCE_VECTOR>(
        p, p.source, p.map, p.source_rows, p.source_cols, at.row * STRIDE - p.pad_h,
        4 * at.quad * STRIDE - p.pad_w, at, map);
    stage_map<4, OTHER_LAYOUT, OTHER_VECTOR>(p, p.kernel, p.gradient, p.kernel_rows, p.kernel_cols,
                                           at.row, 4 * at.quad, at, gradient);
    async_commit();
    async_wait<0>();
    block_barrier();
#pragma unroll 1
    for (int unit = 0; unit < kUnits; ++unit) {
      float beside_value[4][kUnit];
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        load_channels<kUnit>(beside + 16 * (unit + unit_of<4>(t)), beside_value[t]);
      }
#pragma unroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        float value[kUnit];
        load_channels<kUnit>(from + 16 * (unit + unit_of<kQuad>(pixel)), value);
#pragma unroll
        for (int kw = 0; kw < KERNEL; ++kw) {
          const int t = tap_element(kw, pixel);
          if (t < 0) continue;
#pragma unroll
          for (int c = 0; c < kUnit; ++c) sum[kw][t] += beside_value[t][c] * value[c];
        }
      }
    }
  }
  const int target_row = at.row + row, col = (at.quad + quad) * 4;
  if (mine >= quads * KERNEL || at.group + group >= p.groups || target_row >= p.target_rows ||
      col >= p.target_cols) {
    return;
  }
  T* to = reinterpret_cast<T*>(p.target.address) + at.batch * p.target.batch +
          (at.group + group) * static_cast<int>(p.target.channel) +
          target_row * static_cast<int>(p.target.row) +
          col * (KERNELS_LAST ? static_cast<int>(p.target.col) : 1);
#pragma unroll
  for (int kw = 0; kw < KERNEL; ++kw) {
    T* tap = to + (kh * KERNEL + kw) * static_cast<int>(p.target.tap);
    if constexpr (KERNELS_LAST) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        store_narrow<1, 1>(tap + t * static_cast<int>(p.target.col), &sum[kw][t],
                           p.target_cols - col - t);
      }
    } else {
      store_narrow<4, KERNEL_VECTOR>(tap, sum[kw], p.target_cols - col);
    }
  }
}

}  // namespace mmcontext
