// Convolutions with narrow groups on tensor cores: code shared by their kernels.
//
// The M dimension of a matrix product is 16 slots: positions in the map, each with a run of RUN
// target rows and a strip of STRIP target columns. The N dimension is the STRIP columns x channels
// of the target; the K dimension is the window of source columns x channels of one source row that
// the strip depends on. The weight matrix is banded: STRIP = 8 columns of 9 taps fill 9 of 16
// elements, where a dense weight of 32 groups would fill one of 32.
//
// Options:
//   STORAGE        2 bfloat16, 3 float16
//   SOURCE_CHANNELS, TARGET_CHANNELS    per group
//   KERNEL, STRIDE square, padded by KERNEL / 2
//   STRIP, RUN
//   GROUPS         per block
//   TILES          of 8 target columns x channels, per warp
//   PARTS          warps that share a group's target channels
//   THREADS, BLOCKS            per block; least blocks per multiprocessor
#pragma once

#include "grouped_parameters.cuh"
#include "primitives.cuh"

namespace mmcontext {

using T = StorageOf<STORAGE>::type;

#ifndef TRANSPOSED
#define TRANSPOSED 0                   // the gradient of x
#endif

constexpr int kSource = SOURCE_CHANNELS, kTarget = TARGET_CHANNELS;
constexpr int kPad = KERNEL / 2;
// Source rows that a run needs before its first own one.
constexpr int kMargin = TRANSPOSED ? kPad / STRIDE : kPad;

// The tap between a source row and a target row, counted from the starts of window and run.
DEVICE constexpr int tap(int from, int to) {
  return TRANSPOSED ? to + kPad - STRIDE * (from - kMargin) : from - STRIDE * to;
}
// Number of source rows that so many target rows depend on.
DEVICE constexpr int seen(int targets) {
  return TRANSPOSED ? kMargin + (targets - 1 + kPad) / STRIDE + 1
                    : STRIDE * (targets - 1) + KERNEL;
}
// Distance, in source rows, between target rows that are `targets` apart.
DEVICE constexpr int step(int targets) {
  return TRANSPOSED ? targets / STRIDE : targets * STRIDE;
}

constexpr int kWindow = seen(STRIP) * kSource;         // elements
constexpr int kSteps = (kWindow + 15) / 16;           // matrix products to sum over it

DEVICE bool within(int number, int end) {
  return static_cast<unsigned>(number) < static_cast<unsigned>(end);
}

// The warp's position in a block: its group, and which part of the group's work it does.
struct Worker {
  int lane, row, pair;                 // row and pair: of a matrix fragment, as in mma's layout
  int group, part;
};
DEVICE Worker this_worker() {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  return {lane, lane / 4, lane % 4, warp % GROUPS, warp / GROUPS};
}

// The part of the target numbered `item`: its first row and column.
struct Place { int batch, row, col; };
DEVICE Place place_of(const GroupedParameters& p, int item) {
  const int line = item / p.col_blocks;
  return {line / p.row_blocks, line % p.row_blocks * p.runs * RUN,
          (item - line * p.col_blocks) * p.strips * STRIP};
}

// Copy a part of a map with kChannels per group to shared memory, zero-padded beyond the border.
// Asynchronous: the copies have to be waited for.
template <int kChannels>
DEVICE void stage(const PixelMap& map, const StagedPart& part, int batch, int row0, int col0,
                  char* shared) {
  const T* sample = reinterpret_cast<const T*>(map.address) + batch * map.batch +
                    static_cast<int>(blockIdx.y) * GROUPS * kChannels;
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < part.rows; row += THREADS / 32) {
    const int map_row = row0 + row;
    const bool inside = within(map_row, map.rows);
    const T* line = sample + static_cast<long long>(map_row) * map.row;
    char* to = shared + row * part.row_pitch;
    if constexpr (kChannels == 1) {
      // Two pixels of 4 or 8 groups become 4 or 8 pairs of pixels.
      constexpr int kLoaded = kChannels > 1 || GROUPS % 8 == 0 ? 8 : 4;
      constexpr int kLoads = (GROUPS + kLoaded - 1) / kLoaded;
      static_assert(kChannels > 1 || GROUPS % 4 == 0, "groups are loaded by fours");
      for (int item = lane; item < part.cols / 2 * kLoads; item += 32) {
        const int col = item / kLoads * 2, first = item % kLoads * kLoaded;
        Raw<2 * kLoaded> two[2] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int map_col = col0 + col + i;
          if (inside && within(map_col, map.cols)) {
            two[i] = global_load<2 * kLoaded>(line + map_col * map.pixel + first);
          }
        }
#pragma unroll
        for (int g = 0; g < kLoaded; ++g) {
          const unsigned left = two[0].word[g / 2] >> 16 * (g % 2) & 0xffffu;
          const unsigned right = two[1].word[g / 2] >> 16 * (g % 2) & 0xffffu;
          shared_store<4>(to + (first + g) * part.group_pitch + 2 * col,
                          Raw<4>{{left | right << 16}});
        }
      }
    } else {
      constexpr int kBytes = kChannels % 8 == 0 ? 16 : kChannels % 4 == 0 ? 8 : 4;
      constexpr int kOwn = 2 * kChannels / kBytes, kUnits = GROUPS * kOwn;
      for (int item = lane; item < part.cols * kUnits; item += 32) {
        const int col = item / kUnits, unit = item % kUnits, map_col = col0 + col;
        async_copy<kBytes>(to + unit / kOwn * part.group_pitch + 2 * kChannels * col +
                               unit % kOwn * kBytes,
                           line + map_col * map.pixel + unit * (kBytes / 2),
                           inside && within(map_col, map.cols));
      }
    }
  }
}

}  // namespace mmcontext
