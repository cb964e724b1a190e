// The gradient of the weight of a grouped convolution, one partial sum per block. Options: those
// of grouped.cuh, ROWS (kernel rows per warp) and SPLITS (warps that share the kernel rows). The
// matrix products sum over slots; in their result, window x strip, the gradient of each tap lies
// on a diagonal.
#include "grouped.cuh"

namespace mmcontext {

constexpr int kStrip = 2 * STRIP * kTarget;            // bytes of a strip
constexpr int kPitch = 8 * TILES + 1;                 // of a result in shared memory, in floats
constexpr int kReach = STRIDE * (RUN - 1) + ROWS;     // source rows that a warp needs for a run
static_assert(kStrip % 16 == 0 && 2 * STRIDE * STRIP * kSource % 16 == 0,
              "matrices are loaded by 16 bytes");
static_assert(PARTS == 1 || STRIP == 1, "a part has whole channels");

// Adds the products of 16 slots to the sums of a warp's kernel rows, from `row` on.
DEVICE void add_slots(const GroupedParameters& p, const Worker& me, int part, int row, int first,
                      char* shared, float (&sums)[ROWS][kSteps][TILES][4]) {
  const auto split = [&](int slot, int& run, int& strip) {
    const bool counts = slot < p.runs * p.strips;
    const int mine = counts ? slot : 0;
    strip = mine / p.runs;
    run = mine - strip * p.runs;
    return counts;
  };
  int run, strip;
  // The address that a lane passes to ldmatrix: of a slot, and of one half of 16 window elements.
  split(first + me.lane / 16 * 8 + me.lane % 8, run, strip);
  const char* window = shared + me.group * p.source_part.group_pitch +
                       (run * RUN * STRIDE + row) * p.source_part.row_pitch +
                       2 * kSource * STRIDE * STRIP * strip + me.lane / 8 % 2 * 16;
  const bool counts = split(first + me.lane % 16, run, strip);
  const char* gradient =
      counts ? shared + p.target_offset + me.group * p.target_part.group_pitch +
                   run * RUN * p.target_part.row_pitch + kStrip * strip
             : shared + p.zeros_offset;
  gradient += 16 * TILES * part;
  const int gradient_pitch = counts ? p.target_part.row_pitch : 0;
  unsigned gradients[RUN][TILES][2];
#pragma unroll
  for (int r = 0; r < RUN; ++r) {
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      load_two_turned(gradient + r * gradient_pitch + 16 * n, gradients[r][n]);
    }
  }
#pragma unroll
  for (int j = 0; j < kReach; ++j) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      unsigned some[4];
      load_four_turned(window + j * p.source_part.row_pitch + 32 * k, some);
#pragma unroll
      for (int r = 0; r < RUN; ++r) {
        if (tap(j, r) < 0 || tap(j, r) >= ROWS) continue;
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
          multiply_add<T>(sums[tap(j, r)][k][n], some, gradients[r][n]);
        }
      }
    }
  }
}

// Adds up the diagonals and writes the block's partial sums.
DEVICE void write_sums(const GroupedParameters& p, const Worker& me, int part, int row0,
                       const float (&sums)[ROWS][kSteps][TILES][4], char* shared) {
  float* mine = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * (16 * kSteps * kPitch);
  constexpr int kOuts = PARTS > 1 ? 8 * TILES : kTarget;
  const long long group = static_cast<long long>(blockIdx.x) * p.groups +
                          static_cast<int>(blockIdx.y) * GROUPS + me.group;
  float* partial = reinterpret_cast<float*>(p.partial) +
                   group * (KERNEL * KERNEL * kSource * kTarget) + part * kOuts;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    block_barrier();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int n = 0; n < TILES; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          shared_store<4>(mine + (16 * k + me.row + i / 2 * 8) * kPitch + 8 * n + 2 * me.pair +
                              i % 2,
                          bit_cast<Raw<4>>(sums[row][k][n][i]));
        }
      }
    }
    block_barrier();
    if (row0 + row >= KERNEL) continue;
    for (int item = me.lane; item < KERNEL * kSource * kOuts; item += 32) {
      const int out = item % kOuts, place = item / kOuts;  // place: column and input channel
      float sum = 0;
#pragma unroll
      for (int c = 0; c < STRIP; ++c) {
        sum += bit_cast<float>(shared_load<4>(
            mine + (place + STRIDE * kSource * c) * kPitch + c * kTarget + out));
      }
      const int channel = place % kSource, column = place / kSource;
      global_store<4>(partial + (((row0 + row) * KERNEL + column) * kSource + channel) * kTarget +
                          out,
                      bit_cast<Raw<4>>(sum));
    }
  }
}

DEVICE void grad_weight(const GroupedParameters& p) {
  char* shared = shared_memory();
  const Worker me = this_worker();
  const int part = me.part % PARTS, row0 = me.part / PARTS * ROWS;
  if (threadIdx.x < kStrip / 16) {
    shared_store<16>(shared + p.zeros_offset + 16 * threadIdx.x, Raw<16>{});
  }
  float sums[ROWS][kSteps][TILES][4] = {};
  const int count = p.batch * p.row_blocks * p.col_blocks;
  for (int item = blockIdx.x; item < count; item += gridDim.x) {
    const Place at = place_of(p, item);
    block_barrier();
    stage<kSource>(p.source, p.source_part, at.batch, STRIDE * at.row - kPad,
                  STRIDE * at.col - kPad, shared);
    stage<kTarget>(p.target, p.target_part, at.batch, at.row, at.col, shared + p.target_offset);
    async_commit();
    async_wait<0>();
    block_barrier();
    for (int slot = 0; slot < p.runs * p.strips; slot += 16) {
      add_slots(p, me, part, row0, slot, shared, sums);
    }
  }
  write_sums(p, me, part, row0, sums, shared);
}

}  // namespace mmcontext

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    grouped_weight(const mmcontext::GroupedParameters p) {
  mmcontext::grad_weight(p);
}
