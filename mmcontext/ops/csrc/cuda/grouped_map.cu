// A grouped convolution, or the gradient of its input (TRANSPOSED); BIAS: whether one is added.
// The other options are those of grouped.cuh. A block has GROUPS groups and loops over parts of
// the target; every warp keeps the weights of its group in registers.
#include "grouped.cuh"

namespace mmcontext {

constexpr int kPixel = 2 * GROUPS * kTarget;           // bytes of a pixel of the block's result
static_assert(kPixel % 16 == 0, "results are stored by 16 bytes");

// Load the banded weights in the fragment layout of mma's second operand, permuted along the
// summed dimension so that the 4 elements of a thread are contiguous in the window.
DEVICE void load_bands(const GroupedParameters& p, const Worker& me,
                       unsigned (&bands)[KERNEL][kSteps][TILES][2]) {
  const int group = static_cast<int>(blockIdx.y) * GROUPS + me.group;
  const T* weight = reinterpret_cast<const T*>(p.weight);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      const int result = 8 * (me.part * TILES + n) + me.row;
      const int to = result / kTarget, to_channel = result % kTarget;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int element = 16 * k + 4 * me.pair + i;
        const int from = element / kSource, from_channel = element % kSource;
        const int column = tap(from, to);
        const bool seen_by = element < kWindow && within(column, KERNEL);
        const int out = TRANSPOSED ? group * kSource + from_channel : group * kTarget + to_channel;
        const int in = TRANSPOSED ? to_channel : from_channel;
        const T* taps = weight + (out * p.weight_out + in * p.weight_in + column * p.weight_col);
#pragma unroll
        for (int row = 0; row < KERNEL; ++row) {
          unsigned bits = 0;
          if (seen_by) bits = load_one(taps + row * p.weight_row).bits;
          unsigned& word = bands[row][k][n][i / 2];
          word = i % 2 ? word | bits << 16 : bits;
        }
      }
    }
  }
}

// Where the window and the result of a slot lie in shared memory.
struct Slot {
  const char* window;
  char* result;
  bool counts;
};
DEVICE Slot slot_at(const GroupedParameters& p, const Worker& me, int slot, char* shared) {
  const bool counts = slot < p.runs * p.strips;
  const int mine = counts ? slot : 0, strip = mine / p.runs, run = mine - strip * p.runs;
  return {shared + me.group * p.source_part.group_pitch +
              run * step(RUN) * p.source_part.row_pitch + 2 * kSource * step(STRIP) * strip +
              8 * me.pair,
          shared + p.target_offset + run * RUN * p.target_part.row_pitch +
              strip * STRIP * kPixel + 2 * kTarget * me.group,
          counts};
}

DEVICE void put(char* at, float first, float second) {
  T two[2];
  narrow(first, two[0]);
  narrow(second, two[1]);
  if constexpr (kTarget % 2 == 0) {
    shared_store<4>(at, Raw<4>{{two[0].bits | static_cast<unsigned>(two[1].bits) << 16}});
  } else {
    shared_store<2>(at, Raw<2>{{two[0].bits}});
    shared_store<2>(at + kPixel, Raw<2>{{two[1].bits}});
  }
}

// Computes 16 slots, from shared memory to shared memory.
DEVICE void convolve_slots(const GroupedParameters& p, const Worker& me,
                           const unsigned (&bands)[KERNEL][kSteps][TILES][2],
                           const float (&bias)[TILES][2], int first, char* shared) {
  const Slot slots[2] = {slot_at(p, me, first + me.row, shared),
                         slot_at(p, me, first + me.row + 8, shared)};
  float sums[RUN][TILES][4];
#pragma unroll
  for (int r = 0; r < RUN; ++r) {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][n][i] = bias[n][i % 2];
    }
  }
#pragma unroll
  for (int j = 0; j < seen(RUN); ++j) {
    unsigned window[kSteps][4];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto four = shared_load<8>(slots[i].window + j * p.source_part.row_pitch + 32 * k);
        window[k][i] = four.word[0];
        window[k][i + 2] = four.word[1];
      }
    }
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
      if (tap(j, r) < 0 || tap(j, r) >= KERNEL) continue;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
          multiply_add<T>(sums[r][n], window[k], bands[tap(j, r)][k][n]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    const int result = 8 * (me.part * TILES + n) + 2 * me.pair;
    const int offset = result / kTarget * kPixel + result % kTarget * 2;
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!slots[i].counts) continue;
        put(slots[i].result + r * p.target_part.row_pitch + offset, sums[r][n][2 * i],
            sums[r][n][2 * i + 1]);
      }
    }
  }
}

DEVICE Raw<16> sum_of(const Raw<16>& a, const Raw<16>& b) {
  float first[8], second[8];
  widen_all<T>(a, first);
  widen_all<T>(b, second);
  T sums[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) narrow(first[i] + second[i], sums[i]);
  return bit_cast<Raw<16>>(sums);
}

DEVICE void store_part(const GroupedParameters& p, const Place& at, const char* shared) {
  T* sample = reinterpret_cast<T*>(p.target.address) + at.batch * p.target.batch +
              static_cast<int>(blockIdx.y) * GROUPS * kTarget;
  constexpr int kUnits = kPixel / 16;
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < p.runs * RUN; row += THREADS / 32) {
    if (at.row + row >= p.target.rows) continue;
    T* line = sample + static_cast<long long>(at.row + row) * p.target.row;
    const char* from = shared + p.target_offset + row * p.target_part.row_pitch;
    for (int item = lane; item < p.strips * STRIP * kUnits; item += 32) {
      const int col = at.col + item / kUnits;
      if (col >= p.target.cols) continue;
      T* to = line + col * p.target.pixel + item % kUnits * 8;
      Raw<16> value = shared_load<16>(from + 16 * item);
      if (p.accumulate) value = sum_of(value, global_reload<16>(to));
      global_store<16>(to, value);
    }
  }
}

DEVICE void convolve(const GroupedParameters& p) {
  char* shared = shared_memory();
  const Worker me = this_worker();
  const auto stage_item = [&](int item) {
    const Place at = place_of(p, item);
    stage<kSource>(p.source, p.source_part, at.batch, step(at.row) - kMargin,
                  step(at.col) - kMargin, shared);
    async_commit();
  };
  const int count = p.batch * p.row_blocks * p.col_blocks;
  int item = blockIdx.x;
  stage_item(item);
  unsigned bands[KERNEL][kSteps][TILES][2];
  load_bands(p, me, bands);
  float bias[TILES][2] = {};
  if constexpr (BIAS) {
    const T* all = reinterpret_cast<const T*>(p.bias) +
                   (static_cast<int>(blockIdx.y) * GROUPS + me.group) * kTarget;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int result = 8 * (me.part * TILES + n) + 2 * me.pair + i;
        bias[n][i] = widen(load_one(all + result % kTarget));
      }
    }
  }
  while (true) {
    async_wait<0>();
    block_barrier();
    for (int slot = 0; slot < p.runs * p.strips; slot += 16) {
      convolve_slots(p, me, bands, bias, slot, shared);
    }
    block_barrier();
    const int next = item + static_cast<int>(gridDim.x);
    if (next < count) stage_item(next);
    store_part(p, place_of(p, item), shared);
    if (next >= count) return;
    item = next;
  }
}

}  // namespace mmcontext

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    grouped_map(const mmcontext::GroupedParameters p) {
  mmcontext::convolve(p);
}
