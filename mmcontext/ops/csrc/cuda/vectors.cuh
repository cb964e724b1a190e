// 16-byte vectors of neighbouring channels, and sums over the rows of threads in a block.
// STORAGE names the type of the maps' elements.
#pragma once

#include "primitives.cuh"

namespace mmcontext {

using T = StorageOf<STORAGE>::type;
constexpr int kVector = 16 / sizeof(T);

struct Values { float of[kVector]; };

DEVICE Raw<16> load(unsigned long long map, long long element) {
  return global_load<16>(reinterpret_cast<const T*>(map) + element);
}

DEVICE Values wide(const Raw<16>& raw) {
  Values values;
  widen_all<T>(raw, values.of);
  return values;
}

DEVICE void store(unsigned long long map, long long element, const Values& values) {
  struct alignas(16) { T of[kVector]; } narrowed;
#pragma unroll
  for (int i = 0; i < kVector; ++i) narrow(values.of[i], narrowed.of[i]);
  global_store<16>(reinterpret_cast<T*>(map) + element, bit_cast<Raw<16>>(narrowed));
}

DEVICE float load_float(unsigned long long vector, long long index) {
  return bit_cast<float>(global_load<4>(reinterpret_cast<const float*>(vector) + index));
}

DEVICE void store_float(unsigned long long vector, long long index, float value) {
  global_store<4>(reinterpret_cast<float*>(vector) + index, bit_cast<Raw<4>>(value));
}

// Loads as many values of another storage type as a vector of the maps has.
template <class F> DEVICE Values load_values(unsigned long long vector, long long index) {
  constexpr int kStep = 16 / sizeof(F);
  Values values;
#pragma unroll
  for (int i = 0; i < kVector; i += kStep) {
    widen_all<F>(global_load<16>(reinterpret_cast<const F*>(vector) + index + i), values.of + i);
  }
  return values;
}

DEVICE float sigmoid(float z) { return 1.f / (1.f + exponential(-z)); }

// Adds kCount sums over the threads with the same lane, in a fixed order; row 0 gets the totals.
// Needs kCount floats of shared memory per thread.
template <int kCount, int kThreads>
DEVICE void add_rows(float (&sums)[kCount], int row, int rows, int lanes) {
  float* const memory = reinterpret_cast<float*>(shared_memory());
  const auto cell = [&](int k, int thread) { return memory + k * kThreads + thread; };
  const int thread = threadIdx.x;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    shared_store<4>(cell(k, thread), bit_cast<Raw<4>>(sums[k]));
  }
  while (rows > 1) {
    const int half = (rows + 1) / 2;
    block_barrier();
    if (row < rows - half) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        sums[k] += bit_cast<float>(shared_load<4>(cell(k, thread + half * lanes)));
        shared_store<4>(cell(k, thread), bit_cast<Raw<4>>(sums[k]));
      }
    }
    rows = half;
  }
}

}  // namespace mmcontext
