// Adds the blocks' partial gradients of a weight, in a fixed order. Options: STORAGE, KERNEL,
// SOURCE_CHANNELS and TARGET_CHANNELS as in grouped.cuh.
#include "grouped_parameters.cuh"
#include "primitives.cuh"

extern "C" __global__ void grouped_sum(const mmcontext::GroupedSumParameters p) {
  using namespace mmcontext;
  using T = StorageOf<STORAGE>::type;
  constexpr int kSource = SOURCE_CHANNELS, kTarget = TARGET_CHANNELS;
  const int element = blockIdx.x * blockDim.x + threadIdx.x;
  if (element >= p.count) return;
  const float* from = reinterpret_cast<const float*>(p.partial) + element;
  float sum = 0;
#pragma unroll 8
  for (int i = 0; i < p.parts; ++i) sum += load_one(from + static_cast<long long>(i) * p.count);
  const int out = element % kTarget, in = element / kTarget % kSource;
  const int tap = element / (kTarget * kSource), column = tap % KERNEL, line = tap / KERNEL;
  const int row = line % KERNEL, group = line / KERNEL;
  T value;
  narrow(sum, value);
  global_store<sizeof(T)>(reinterpret_cast<T*>(p.target) + (group * kTarget + out) * p.weight_out +
                              in * p.weight_in + row * p.weight_row + column * p.weight_col,
                          bit_cast<Raw<sizeof(T)>>(value));
}
