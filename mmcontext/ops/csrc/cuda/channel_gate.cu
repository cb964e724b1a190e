// Means of maps over their pixels, and maps scaled per image and channel:
//   y = s x,  or with another map  y = other + s (x - other).
// Options:
//   PASS      0 sums of maps, 1 means from them, 2 y,
//             3 sums of the gradient of s, 4 gradient of the factor from them, 5 gradient of maps
//   STORAGE   StorageOf the maps; 0, 2 or 3. FACTOR: of factors, means and their gradients
//   OTHER     1 if there is another map
//   GATE      s is 0 the factor, 1 its sigmoid, 2 the first of a channel's two softmax outputs
//   WHOLE     1 if a block has all pixels of an image, so that passes 1 and 4 are not needed
//   THREADS   per block
//
// A thread has one 16-byte vector of channels and loops over pixels, with several loads in flight.
// Sums are added in a fixed order and therefore deterministic.
#include "channel_gate.cuh"
#include "vectors.cuh"

namespace mmcontext {

using F = StorageOf<FACTOR>::type;

struct Place {
  int channel, row, rows;
  long long begin, end, image;             // pixels, counted over all images; image: its first
  bool used;
};

DEVICE Place place(const ChannelGateParameters& p) {
  Place at;
  const int lane = threadIdx.x % p.lanes;
  at.row = threadIdx.x / p.lanes;
  at.rows = THREADS / p.lanes;
  at.channel = (blockIdx.x * p.lanes + lane) * kVector;
  at.image = blockIdx.z * p.pixels;
  const long long share = (p.pixels + gridDim.y - 1) / gridDim.y, first = blockIdx.y * share;
  at.begin = at.image + first;
  at.end = at.image + (first + share < p.pixels ? first + share : p.pixels);
  at.used = at.channel < p.channels && at.row < at.rows;
  return at;
}

DEVICE void store_factor(unsigned long long vector, long long index, float value) {
  F narrowed;
  narrow(value, narrowed);
  global_store<sizeof(F)>(reinterpret_cast<F*>(vector) + index,
                          bit_cast<Raw<sizeof(F)>>(narrowed));
}

DEVICE float load_factor(unsigned long long vector, long long index) {
  return widen(load_one(reinterpret_cast<const F*>(vector) + index));
}

// s of one channel of one image; index = image * channels + channel.
DEVICE float scale_of(const ChannelGateParameters& p, long long index) {
#if GATE == 0
  return load_factor(p.factor, index);
#elif GATE == 1
  return sigmoid(load_factor(p.factor, index));
#else
  return sigmoid(load_factor(p.factor, 2 * index) - load_factor(p.factor, 2 * index + 1));
#endif
}

DEVICE Values scales_of(const ChannelGateParameters& p, const Place& at) {
  const long long index = 1ll * blockIdx.z * p.channels + at.channel;
  Values s;
#if GATE == 2
  const Values low = load_values<F>(p.factor, 2 * index);
  const Values high = load_values<F>(p.factor, 2 * index + kVector);
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    s.of[i / 2] = sigmoid(low.of[i] - low.of[i + 1]);
    s.of[(kVector + i) / 2] = sigmoid(high.of[i] - high.of[i + 1]);
  }
#else
  s = load_values<F>(p.factor, index);
#if GATE == 1
#pragma unroll
  for (int i = 0; i < kVector; ++i) s.of[i] = sigmoid(s.of[i]);
#endif
#endif
  return s;
}

// Turns the sum over all pixels of one channel of one image into the result.
DEVICE void finish(const ChannelGateParameters& p, long long index, float sum) {
#if PASS <= 1
  store_factor(p.means, index, sum * p.scale);
#elif GATE == 0
  store_factor(p.grad_factor, index, sum);
#else
  const float s = scale_of(p, index), slope = sum * s * (1.f - s);
#if GATE == 1
  store_factor(p.grad_factor, index, slope);
#else
  store_factor(p.grad_factor, 2 * index, slope);
  store_factor(p.grad_factor, 2 * index + 1, -slope);
#endif
#endif
}

// Passes 0 and 3.
DEVICE void sum(const ChannelGateParameters& p) {
  constexpr bool kGradient = PASS == 3;
  constexpr int kUnroll = kGradient || OTHER ? 2 : 4;
  const Place at = place(p);
  float sums[kVector] = {};
  if (at.used) {
    for (long long pixel = at.begin + at.row; pixel < at.end; pixel += kUnroll * at.rows) {
      Raw<16> raw_x[kUnroll], raw_other[kUnroll], raw_grad[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const long long one = pixel + u * at.rows, element = one * p.channels + at.channel;
        if (one < at.end) raw_x[u] = load(p.x, element);
        if (OTHER && one < at.end) raw_other[u] = load(p.other, element);
        if (kGradient && one < at.end) raw_grad[u] = load(p.grad, element);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (pixel + u * at.rows >= at.end) break;
        const Values x = wide(raw_x[u]);
        Values other = {}, grad = {};
        if constexpr (OTHER) other = wide(raw_other[u]);
        if constexpr (kGradient) grad = wide(raw_grad[u]);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          sums[i] += kGradient ? grad.of[i] * (x.of[i] - other.of[i]) : x.of[i] + other.of[i];
        }
      }
    }
  }
  add_rows<kVector, THREADS>(sums, at.row, at.rows, p.lanes);
  if (at.row || !at.used) return;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
#if WHOLE
    finish(p, 1ll * blockIdx.z * p.channels + at.channel + i, sums[i]);
#else
    const long long line = 1ll * blockIdx.y * p.batch + blockIdx.z;
    store_float(p.partial, line * p.channels + at.channel + i, sums[i]);
#endif
  }
}

// Passes 1 and 4: one thread per channel and image.
DEVICE void add_partials(const ChannelGateParameters& p) {
  const long long index = 1ll * blockIdx.x * THREADS + threadIdx.x;
  const long long count = 1ll * p.batch * p.channels;
  if (index >= count) return;
  float sum = 0.f;
#pragma unroll 4
  for (int line = 0; line < p.partials; ++line) {
    sum += load_float(p.partial, line * count + index);
  }
  finish(p, index, sum);
}

DEVICE void make_result(const ChannelGateParameters& p) {
  const Place at = place(p);
  if (!at.used) return;
  const Values s = scales_of(p, at);
  constexpr int kUnroll = OTHER ? 2 : 4;
  for (long long pixel = at.begin + at.row; pixel < at.end; pixel += kUnroll * at.rows) {
    Raw<16> raw_x[kUnroll], raw_other[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows, element = one * p.channels + at.channel;
      if (one < at.end) raw_x[u] = load(p.x, element);
      if (OTHER && one < at.end) raw_other[u] = load(p.other, element);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows;
      if (one >= at.end) break;
      Values x = wide(raw_x[u]), other = {};
      if constexpr (OTHER) other = wide(raw_other[u]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        x.of[i] = other.of[i] + s.of[i] * (x.of[i] - other.of[i]);
      }
      store(p.y, one * p.channels + at.channel, x);
    }
  }
}

// Gradients of the maps through y and, if the means have a gradient, through the means.
DEVICE void make_gradients(const ChannelGateParameters& p) {
  const Place at = place(p);
  if (!at.used) return;
  const Values s = scales_of(p, at);
  Values shift = {};
  if (p.grad_means) {
    shift = load_values<F>(p.grad_means, 1ll * blockIdx.z * p.channels + at.channel);
#pragma unroll
    for (int i = 0; i < kVector; ++i) shift.of[i] *= p.scale;
  }
  constexpr int kUnroll = OTHER ? 2 : 4;
  for (long long pixel = at.begin + at.row; pixel < at.end; pixel += kUnroll * at.rows) {
    Raw<16> raw[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows;
      if (one < at.end) raw[u] = load(p.grad, one * p.channels + at.channel);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows, element = one * p.channels + at.channel;
      if (one >= at.end) break;
      const Values grad = wide(raw[u]);
      Values of_x, of_other;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        of_x.of[i] = grad.of[i] * s.of[i] + shift.of[i];
        of_other.of[i] = grad.of[i] * (1.f - s.of[i]) + shift.of[i];
      }
      if (p.grad_x) store(p.grad_x, element, of_x);
      if (OTHER && p.grad_other) store(p.grad_other, element, of_other);
    }
  }
}

}  // namespace mmcontext

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    channel_gate(const mmcontext::ChannelGateParameters p) {
#if PASS == 0 || PASS == 3
  mmcontext::sum(p);
#elif PASS == 1 || PASS == 4
  mmcontext::add_partials(p);
#elif PASS == 2
  mmcontext::make_result(p);
#else
  mmcontext::make_gradients(p);
#endif
}
