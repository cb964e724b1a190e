// Adds the blocks' parts of the gradient of a weight, in one order. Options: STORAGE, SOURCE_CHANNELS,
// TARGET_CHANNELS, KERNEL as in grouped.cuh.
#include "grouped_parameters.cuh"
#include "primitives.cuh"

extern "C" __global__ void grouped_sum(const mmcontext::GroupedSumParameters p) {
  using namespace mmcontext;
  using T = StorageOf<STORAGE>::type;
  const int element = blockIdx.x * blockDim.x + threadIdx.x;
  if (element >= p.count) return;
  const float* from = reinterpret_cast<const float*>(p.partial) + element;
  float sum = 0;
#pragma unroll 8
  for (int i = 0; i < p.parts; ++i) sum += load_one(from + static_cast<long long>(i) * p.count);
  const int out = element % TARGET_CHANNELS, in = element / TARGET_CHANNELS % SOURCE_CHANNELS;
  const int tap = element / (TARGET_CHANNELS * SOURCE_CHANNELS), column = tap % KERNEL, line = tap / KERNEL;
  const int row = line % KERNEL, group = line / KERNEL;
  T value;
  narrow(sum, value);
  global_store<sizeof(T)>(reinterpret_cast<T*>(p.target) + (group * TARGET_CHANNELS + out) * p.weight_out +
                              in * p.weight_in + row * p.weight_row + column * p.weight_col,
                          bit_cast<Raw<sizeof(T)>>(value));
}
