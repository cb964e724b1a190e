// Group norm of contiguous maps. Options:
//   PASS     0 result, 1 gradient of x and sums per image and channel,
//            2 gradients of weight and bias from them
//   STORAGE  StorageOf; 0, 2 or 3
//   WIDE     1 if the pixels of a channel fill whole 16-byte vectors
//   THREADS  per block
//
// In passes 0 and 1 a block has one group of one image, which lies together in memory and is small
// enough to come from a cache when it is read again. Sums are added in a fixed order.
#include "group_norm.cuh"
#include "vectors.cuh"

namespace mmcontext {

constexpr int kStep = WIDE ? kVector : 1;

struct Some { float of[kStep]; };

DEVICE Some get(unsigned long long map, long long element) {
  Some values;
#if WIDE
  widen_all<T>(load(map, element), values.of);
#else
  values.of[0] = widen(load_one(reinterpret_cast<const T*>(map) + element));
#endif
  return values;
}

DEVICE void put(unsigned long long map, long long element, const Some& values) {
#if WIDE
  store(map, element, bit_cast<Values>(values));
#else
  T narrowed;
  narrow(values.of[0], narrowed);
  global_store<sizeof(T)>(reinterpret_cast<T*>(map) + element,
                          bit_cast<Raw<sizeof(T)>>(narrowed));
#endif
}

// A block's group: its channels and where it begins.
struct Place {
  int channels, first, size;               // size: elements
  long long begin;
};

DEVICE Place place(const GroupNormParameters& p) {
  Place at;
  at.channels = p.channels / p.groups;
  at.first = blockIdx.x % p.groups * at.channels;
  at.size = at.channels * p.pixels;
  at.begin = 1ll * blockIdx.x * at.size;
  return at;
}

// The sum over all threads, known to all of them.
template <int kCount> DEVICE void share_sums(float (&sums)[kCount]) {
  float* const memory = reinterpret_cast<float*>(shared_memory());
  add_rows<kCount, THREADS>(sums, threadIdx.x, THREADS, 1);
  block_barrier();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) shared_store<4>(memory + k, bit_cast<Raw<4>>(sums[k]));
  }
  block_barrier();
#pragma unroll
  for (int k = 0; k < kCount; ++k) sums[k] = bit_cast<float>(shared_load<4>(memory + k));
  block_barrier();
}

DEVICE float weight_of(const GroupNormParameters& p, int channel) {
  return p.weight ? load_float(p.weight, channel) : 1.f;
}

DEVICE void make_result(const GroupNormParameters& p) {
  const Place at = place(p);
  // Relative to the first element, so that a mean far from zero costs no precision.
  const float origin = get(p.x, at.begin).of[0];
  float sums[2] = {};
#pragma unroll 4
  for (int i = threadIdx.x * kStep; i < at.size; i += THREADS * kStep) {
    const Some x = get(p.x, at.begin + i);
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      const float value = x.of[k] - origin;
      sums[0] += value;
      sums[1] += value * value;
    }
  }
  share_sums(sums);
  const float count = static_cast<float>(at.size), offset = sums[0] / count;
  const float variance = sums[1] / count - offset * offset;
  const float mean = origin + offset;
  const float positive = variance > 0.f || variance != variance ? variance : 0.f;
  const float inverse = inverse_root(positive + p.eps);
  if (p.saved && threadIdx.x == 0) {
    store_float(p.saved, blockIdx.x, mean);
    store_float(p.saved, 1ll * p.batch * p.groups + blockIdx.x, inverse);
  }
#pragma unroll 4
  for (int i = threadIdx.x * kStep; i < at.size; i += THREADS * kStep) {
    const int channel = at.first + i / p.pixels;
    const float scale = weight_of(p, channel) * inverse;
    const float shift = p.bias ? load_float(p.bias, channel) : 0.f;
    Some x = get(p.x, at.begin + i);
#pragma unroll
    for (int k = 0; k < kStep; ++k) x.of[k] = (x.of[k] - mean) * scale + shift;
    put(p.y, at.begin + i, x);
  }
}

DEVICE void make_gradient(const GroupNormParameters& p) {
  const Place at = place(p);
  const float mean = load_float(p.saved, blockIdx.x);
  const float inverse = load_float(p.saved, 1ll * p.batch * p.groups + blockIdx.x);
  // Sums over the group, weighted: of grad, and of grad * normed.
  float totals[2] = {};
  const int lane = threadIdx.x % p.lanes, row = threadIdx.x / p.lanes, rows = THREADS / p.lanes;
  const long long line = 1ll * (blockIdx.x / p.groups) * p.channels;
  for (int start = 0; start < at.channels; start += p.lanes) {
    const int channel = start + lane;
    const bool used = channel < at.channels && row < rows;
    float sums[2] = {};
    if (used) {
      const long long begin = at.begin + 1ll * channel * p.pixels;
#pragma unroll 2
      for (int i = row * kStep; i < p.pixels; i += rows * kStep) {
        const Some x = get(p.x, begin + i), grad = get(p.grad, begin + i);
#pragma unroll
        for (int k = 0; k < kStep; ++k) {
          sums[0] += grad.of[k];
          sums[1] += grad.of[k] * (x.of[k] - mean);
        }
      }
      sums[1] *= inverse;
    }
    block_barrier();
    add_rows<2, THREADS>(sums, row, rows, p.lanes);
    if (!used || row) continue;
    const float weight = weight_of(p, at.first + channel);
    const long long place = line + at.first + channel;
    store_float(p.sums, place, sums[0]);
    store_float(p.sums, 1ll * p.batch * p.channels + place, sums[1]);
    totals[0] += weight * sums[0];
    totals[1] += weight * sums[1];
  }
  block_barrier();
  share_sums(totals);
  const float count = static_cast<float>(at.size);
  const float constant = totals[0] / count, slope = totals[1] / count;
#pragma unroll 2
  for (int i = threadIdx.x * kStep; i < at.size; i += THREADS * kStep) {
    const float weight = weight_of(p, at.first + i / p.pixels);
    const Some x = get(p.x, at.begin + i);
    Some grad = get(p.grad, at.begin + i);
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      grad.of[k] = inverse * (grad.of[k] * weight - constant -
                              (x.of[k] - mean) * inverse * slope);
    }
    put(p.grad_x, at.begin + i, grad);
  }
}

DEVICE void finish_gradient(const GroupNormParameters& p) {
  constexpr int kColumns = 32;
  const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
  const int channel = blockIdx.x * kColumns + column;
  float sums[2] = {};
  if (channel < p.channels) {
#pragma unroll 4
    for (int image = row; image < p.batch; image += THREADS / kColumns) {
      sums[0] += load_float(p.sums, 1ll * image * p.channels + channel);
      sums[1] += load_float(p.sums, (1ll * p.batch + image) * p.channels + channel);
    }
  }
  add_rows<2, THREADS>(sums, row, THREADS / kColumns, kColumns);
  if (row || channel >= p.channels) return;
  store_float(p.grad_bias, channel, sums[0]);
  store_float(p.grad_weight, channel, sums[1]);
}

}  // namespace mmcontext

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    group_norm(const mmcontext::GroupNormParameters p) {
#if PASS == 0
  mmcontext::make_result(p);
#elif PASS == 1
  mmcontext::make_gradient(p);
#else
  mmcontext::finish_gradient(p);
#endif
}
