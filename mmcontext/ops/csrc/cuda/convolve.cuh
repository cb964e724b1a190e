// Forward and gradient of x: every thread computes 4 target columns of kPart channels. The tile of
// the map stays in shared memory; rows of w stream through it.
#pragma once

#include "tile.cuh"

namespace mmcontext {

constexpr int kPart = PART;                           // channels of a thread

// Stage the step-th row of taps of w: every thread copies a piece of each of its taps or, if the
// taps are contiguous in memory, single elements.
DEVICE void stage_kernels(const TiledParameters& p, const Block& at, int step, T* shared) {
  constexpr int kPieces = kWide / KERNEL_VECTOR;        // of a quad
  const T* sample = reinterpret_cast<const T*>(p.kernel.address) + at.batch * p.kernel.batch;
  const long long tap_stride = KERNELS_LAST ? 1 : p.kernel.tap;
  const int count = p.piece_cols.by * p.piece_rows.by * p.tile_groups * (KERNELS_LAST ? KERNEL : 1);
  for (int item = threadIdx.x; item < count; item += blockDim.x) {
    const int place = KERNELS_LAST ? item / KERNEL : item;
    const int line = quotient(place, p.piece_cols), piece = place - line * p.piece_cols.by;
    const int group = quotient(line, p.piece_rows), row = line - group * p.piece_rows.by;
    const int target_row = at.row + row, kh = first_tap(target_row) + kRowStep * step;
    const int from_row = kBack ? row_before(target_row, kh) : target_row;
    const bool inside = kh < KERNEL && within(from_row, p.kernel_rows) &&
                        at.group + group < p.groups;
    const int col = at.quad * kWide + piece * KERNEL_VECTOR;
    const T* from = sample + kh * KERNEL * tap_stride +
                    ((at.group + group) * static_cast<int>(p.kernel.channel) +
                     from_row * static_cast<int>(p.kernel.row));
    T* to = shared + group * p.group_pitch + row * p.line_pitch +
            piece / kPieces * p.quad_pitch + piece % kPieces * KERNEL_VECTOR;
    if (KERNELS_LAST) {
      const int kw = item - place * KERNEL, from_col = col + shift_quads(kw) * kWide;
      async_copy<sizeof(T)>(to + kw * p.tap_pitch,
                            from + kw + from_col * static_cast<int>(p.kernel.col),
                            inside && within(from_col, p.kernel_cols));
      continue;
    }
    from += col;
#pragma unroll
    for (int kw = 0; kw < KERNEL; ++kw) {
      const int shift = shift_quads(kw) * kWide;
      async_copy<KERNEL_VECTOR * sizeof(T)>(to, from + shift,
                                            inside && within(col + shift, p.kernel_cols));
      from += tap_stride;
      to += p.tap_pitch;
    }
  }
}

// The elements of w of one row of taps that this thread needs, widened.
DEVICE void load_kernels(const T* from, int tap_pitch, int quad_pitch,
                         float (&w)[KERNEL][kWide]) {
#pragma unroll
  for (int kw = 0; kw < KERNEL; ++kw) {
    float value[2 * kWide];
    widen_all<T>(shared_load<kWide * sizeof(T)>(from + kw * tap_pitch), value);
    if (shift_rest(kw)) {
      widen_all<T>(shared_load<kWide * sizeof(T)>(from + kw * tap_pitch + quad_pitch),
                   value + kWide);
    }
#pragma unroll
    for (int m = 0; m < kWide; ++m) w[kw][m] = value[m + shift_rest(kw)];
  }
}

// Add one row of taps: `from` is the unit of the quad's first source pixel.
DEVICE void add_row(const char* from, const float (&w)[KERNEL][kWide],
                    float (&sum)[kPart][4]) {
#pragma unroll
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    float value[kPart];
    load_channels<kPart>(from + 16 * unit_of<kQuad>(pixel), value);
#pragma unroll
    for (int kw = 0; kw < KERNEL; ++kw) {
      const int m = tap_element(kw, pixel);
      if (m < 0) continue;
      const int col = tap_column(kw) + m * kColumnStep;
#pragma unroll
      for (int c = 0; c < kPart; ++c) sum[c][col] += w[kw][m] * value[c];
    }
  }
}

DEVICE void store_target(const TiledParameters& p, const Block& at, int group, int row, int col,
                         int first, const float (&sum)[kPart][4]) {
  T* sample = reinterpret_cast<T*>(p.target.address) + at.batch * p.target.batch;
  const int channel = group * p.group_step + first * p.channel_step;
  T* to = sample + channel * static_cast<int>(p.target.channel) +
          row * static_cast<int>(p.target.row) +
          col * (OTHER_LAYOUT ? static_cast<int>(p.target.col) : 1);
  if constexpr (OTHER_LAYOUT == kLast) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      float value[kPart];
#pragma unroll
      for (int c = 0; c < kPart; ++c) value[c] = sum[c][t];
      if (col + t < p.target_cols) {
        store_narrow<kPart, kUnit>(to + t * static_cast<int>(p.target.col), value,
                                   p.shared - first);
      }
    }
  } else if constexpr (OTHER_LAYOUT == kMixed) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int c = 0; c < kPart; ++c) {
        if (col + t < p.target_cols && first + c < p.shared) {
          store_narrow<1, 1>(to + t * static_cast<int>(p.target.col) + c * p.channel_step,
                             &sum[c][t], 1);
        }
      }
    }
  } else {
#pragma unroll
    for (int c = 0; c < kPart; ++c) {
      if (first + c >= p.shared) break;
      store_narrow<4, OTHER_VECTOR>(
          to + c * p.channel_step * static_cast<int>(p.target.channel), sum[c],
          p.target_cols - col);
    }
  }
}

DEVICE void convolve(const TiledParameters& p) {
  constexpr int kParts = CHANNELS / kPart;
  char* map = shared_memory();
  T* kernels = reinterpret_cast<T*>(map + p.kernel_offset);
  const Block at = this_block(p);
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < kSteps) stage_kernels(p, at, step, kernels + step * p.stage_pitch);
    // The map belongs to the first group of copies, the first to be waited for.
    if (step == 0) {
      const int row0 = kBack ? row_before(at.row, KERNEL - 1) : at.row * STRIDE - p.pad_h;
      const int col0 = at.quad * kQuad + (kBack ? kFirstPixel : -p.pad_w);
      stage_map<kQuad, SOURCE_LAYOUT, SOURCE_VECTOR>(p, p.source, p.map, p.source_rows,
                                                   p.source_cols, row0, col0, at, map);
    }
    async_commit();
  }
  const int quads = p.tile_groups * p.tile_rows * p.tile_quads;
  const int mine = threadIdx.x, part = mine / quads < kParts ? mine / quads : kParts - 1;
  const int n = mine - part * quads < quads ? mine - part * quads : quads - 1;
  // Neighbouring threads store neighbouring elements: quads, or groups if the target is mixed.
  const int inner = OTHER_LAYOUT == kMixed ? p.tile_groups : p.tile_quads;
  const int line = n / inner, place = n - line * inner;
  const int outer = OTHER_LAYOUT == kMixed ? p.tile_quads : p.tile_rows;
  const int row = OTHER_LAYOUT == kMixed ? line / outer : line % outer;
  const int quad = OTHER_LAYOUT == kMixed ? line % outer : place;
  const int group = OTHER_LAYOUT == kMixed ? place : line / outer;
  const int target_row = at.row + row, tap0 = first_tap(target_row);
  const char* from = map + 16 * (group * p.map.group_pitch + part * (kPart / kUnit) +
                                 unit_of<kQuad>(quad * kQuad));
  const T* wide = kernels + group * p.group_pitch + row * p.line_pitch + quad * p.quad_pitch;
  float sum[kPart][4] = {};
  int stage = 0;
#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
    async_wait<STAGES - 2>();
    block_barrier();
    const int ahead = step + STAGES - 1;
    if (ahead < kSteps) {
      int place = stage + STAGES - 1;
      place = place >= STAGES ? place - STAGES : place;
      stage_kernels(p, at, ahead, kernels + place * p.stage_pitch);
    }
    async_commit();
    const int kh = tap0 + kRowStep * step;
    if (kh < KERNEL) {
      const int map_row = kBack ? row_before(target_row, kh) - row_before(at.row, KERNEL - 1)
                                : row * STRIDE + kh * DILATION;
      float w[KERNEL][kWide];
      load_kernels(wide + stage * p.stage_pitch, p.tap_pitch, p.quad_pitch, w);
      add_row(from + 16 * map_row * p.map.row_pitch, w, sum);
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  async_wait<0>();
  const int col = (at.quad + quad) * 4;
  if (mine < quads * kParts && at.group + group < p.groups && target_row < p.target_rows &&
      col < p.target_cols) {
    store_target(p, at, at.group + group, target_row, col, at.chunk + part * kPart, sum);
  }
}

}  // namespace mmcontext
