// Batch norm, residual and activation of channels-last maps. Options:
//   PASS           0 sums of the batch, 1 statistics from them, 2 result,
//                  3 sums of the gradient, 4 gradients of weight and bias from them,
//                  5 gradient of x
//   STORAGE        StorageOf; 0, 2 or 3
//   ACTIVATION     0 none, 1 relu, 2 silu
//   RESIDUAL       1 if a residual is added before the activation
//   BATCH          1: statistics of the batch, 0: given ones
//   SUMS           1 if pass 3 runs before pass 5
//   THREADS        per block; BLOCKS of them share a multiprocessor
//
// A thread has one 16-byte vector of channels and loops over pixels, with several loads in flight.
// Passes 0 and 3 write one partial sum per block; passes 1 and 4 add those in a fixed order, so
// that the result is deterministic.
#include "batch_norm.cuh"
#include "vectors.cuh"

namespace mmcontext {

// In a block of pass 1 or 4: channels, and threads that share the sums of one channel.
constexpr int kColumns = 32, kShares = THREADS / kColumns;

// The channels of a thread and the pixels that it shares with its block.
struct Place {
  int channel, lane, row, rows;
  long long begin, end;
  bool used;
};

DEVICE Place place(const BatchNormParameters& p) {
  Place at;
  at.lane = threadIdx.x % p.lanes;
  at.row = threadIdx.x / p.lanes;
  at.rows = THREADS / p.lanes;
  at.channel = (blockIdx.x * p.lanes + at.lane) * kVector;
  const long long share = (p.pixels + gridDim.y - 1) / gridDim.y;
  at.begin = blockIdx.y * share;
  at.end = at.begin + share < p.pixels ? at.begin + share : p.pixels;
  at.used = at.channel < p.channels && at.row < at.rows;
  return at;
}

// The norm of a thread's channels: the mean, and the scale and shift that are applied to x.
struct Norm { Values mean, scale, shift; };

DEVICE Norm norm_of(const BatchNormParameters& p, int channel) {
  Norm norm;
#if BATCH
  norm.mean = load_values<float>(p.saved, channel);
  norm.scale = load_values<float>(p.saved, channel + 2 * p.channels);
  norm.shift = load_values<float>(p.saved, channel + 3 * p.channels);
#else
  norm.mean = load_values<float>(p.running_mean, channel);
  const Values variance = load_values<float>(p.running_variance, channel);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float weight = p.weight ? load_float(p.weight, channel + i) : 1.f;
    const float bias = p.bias ? load_float(p.bias, channel + i) : 0.f;
    norm.scale.of[i] = weight * inverse_root(variance.of[i] + p.eps);
    norm.shift.of[i] = bias - norm.mean.of[i] * norm.scale.of[i];
  }
#endif
  return norm;
}

DEVICE float activate(float z) {
#if ACTIVATION == 1
  return z < 0.f ? 0.f : z;  // NaN is kept
#elif ACTIVATION == 2
  return z * sigmoid(z);
#else
  return z;
#endif
}

// Which map the derivative of the activation is computed from: y with a residual, else x.
constexpr bool kReadsY = ACTIVATION != 0 && RESIDUAL, kReadsX = ACTIVATION != 0 && !RESIDUAL;

// The gradient before the activation.
DEVICE float before_activation(float grad, float x, float y, float scale, float shift) {
#if ACTIVATION == 1
  return (RESIDUAL ? y : x * scale + shift) <= 0.f ? 0.f : grad;
#elif ACTIVATION == 2
  const float z = x * scale + shift, open = sigmoid(z);
  return grad * open * (1.f + z * (1.f - open));
#else
  return grad;
#endif
}

// Adds the sums of the threads of a lane, and writes the block's sums to its line of `partial`.
DEVICE void leave_sums(const BatchNormParameters& p, const Place& at, Values& first,
                       Values& second) {
  float sums[2 * kVector];
#pragma unroll
  for (int k = 0; k < 2 * kVector; ++k) {
    sums[k] = k < kVector ? first.of[k] : second.of[k - kVector];
  }
  add_rows<2 * kVector, THREADS>(sums, at.row, at.rows, p.lanes);
  if (at.row || !at.used) return;
#pragma unroll
  for (int k = 0; k < 2 * kVector; ++k) {
    const long long line = 2 * blockIdx.y + k / kVector;
    store_float(p.partial, line * p.channels + at.channel + k % kVector, sums[k]);
  }
}

// Sums of x and of its square, relative to the first pixel: avoids cancellation if the mean is far
// from zero.
DEVICE void sum_batch(const BatchNormParameters& p) {
  const Place at = place(p);
  Values sum = {}, square = {};
  if (at.used) {
    const Raw<16> first = load(p.x, at.channel);
    const Values origin = wide(first);
    constexpr int kUnroll = 4;
    for (long long pixel = at.begin + at.row; pixel < at.end; pixel += kUnroll * at.rows) {
      Raw<16> raw[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const long long one = pixel + u * at.rows;
        raw[u] = one < at.end ? load(p.x, one * p.channels + at.channel) : first;
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const Values x = wide(raw[u]);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const float value = x.of[i] - origin.of[i];
          sum.of[i] += value;
          square.of[i] += value * value;
        }
      }
    }
  }
  leave_sums(p, at, sum, square);
}

// Adds both partial sums of a channel over all blocks of pixels; true for the one thread that gets
// the totals.
DEVICE bool add_partials(const BatchNormParameters& p, int& channel, double& first,
                         double& second) {
  const int column = threadIdx.x % kColumns, share = threadIdx.x / kColumns;
  double* const memory = reinterpret_cast<double*>(shared_memory());
  channel = blockIdx.x * kColumns + column;
  float sums[2] = {0.f, 0.f};
  if (channel < p.channels) {
#pragma unroll 4
    for (int line = share; line < p.partials; line += kShares) {
      sums[0] += load_float(p.partial, 2ll * line * p.channels + channel);
      sums[1] += load_float(p.partial, (2ll * line + 1) * p.channels + channel);
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    shared_store<8>(memory + k * THREADS + threadIdx.x,
                    bit_cast<Raw<8>>(static_cast<double>(sums[k])));
  }
  block_barrier();
  if (share || channel >= p.channels) return false;
  first = second = 0;
  for (int i = 0; i < kShares; ++i) {
    first += bit_cast<double>(shared_load<8>(memory + i * kColumns + column));
    second += bit_cast<double>(shared_load<8>(memory + THREADS + i * kColumns + column));
  }
  return true;
}

DEVICE void finish_statistics(const BatchNormParameters& p) {
  int channel;
  double sum, square;
  if (!add_partials(p, channel, sum, square)) return;
  const double count = static_cast<double>(p.pixels);
  const double offset = sum / count;
  const double variance = square / count - offset * offset;
  const float mean = static_cast<float>(
      widen(load_one(reinterpret_cast<const T*>(p.x) + channel)) + offset);
  const float positive = variance > 0. || variance != variance ? static_cast<float>(variance) : 0.f;
  const float inverse = inverse_root(positive + p.eps);
  const float scale = (p.weight ? load_float(p.weight, channel) : 1.f) * inverse;
  store_float(p.saved, channel, mean);
  store_float(p.saved, channel + p.channels, inverse);
  store_float(p.saved, channel + 2ll * p.channels, scale);
  store_float(p.saved, channel + 3ll * p.channels,
              (p.bias ? load_float(p.bias, channel) : 0.f) - mean * scale);
  if (p.running_mean) {
    const float unbiased = static_cast<float>(positive * (count / (count - 1.)));
    const float old_mean = load_float(p.running_mean, channel);
    const float old_variance = load_float(p.running_variance, channel);
    const float offset = p.offset ? load_float(p.offset, channel) : 0.f;
    store_float(p.running_mean, channel, old_mean + p.momentum * (mean + offset - old_mean));
    store_float(p.running_variance, channel, old_variance + p.momentum * (unbiased - old_variance));
  }
  if (p.batches && channel == 0) {
    long long* const batches = reinterpret_cast<long long*>(p.batches);
    global_store<8>(batches, bit_cast<Raw<8>>(bit_cast<long long>(global_load<8>(batches)) + 1));
  }
}

DEVICE void make_result(const BatchNormParameters& p) {
  const Place at = place(p);
  if (!at.used) return;
  const Norm norm = norm_of(p, at.channel);
  constexpr int kUnroll = RESIDUAL ? 2 : 4;
  for (long long pixel = at.begin + at.row; pixel < at.end; pixel += kUnroll * at.rows) {
    Raw<16> raw[kUnroll], added[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows, element = one * p.channels + at.channel;
      if (one < at.end) raw[u] = load(p.x, element);
      if (RESIDUAL && one < at.end) added[u] = load(p.residual, element);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows;
      if (one >= at.end) break;
      Values x = wide(raw[u]), residual = {};
      if constexpr (RESIDUAL) residual = wide(added[u]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        x.of[i] = activate(x.of[i] * norm.scale.of[i] + norm.shift.of[i] + residual.of[i]);
      }
      store(p.y, one * p.channels + at.channel, x);
    }
  }
}

// Also writes the gradient before the activation, which is that of the residual.
DEVICE void sum_gradient(const BatchNormParameters& p) {
  const Place at = place(p);
  Values sum = {}, product = {};
  if (at.used) {
    const Norm norm = norm_of(p, at.channel);
    constexpr int kUnroll = 2;
    for (long long pixel = at.begin + at.row; pixel < at.end; pixel += kUnroll * at.rows) {
      Raw<16> raw_x[kUnroll], raw_grad[kUnroll], raw_y[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const long long one = pixel + u * at.rows, element = one * p.channels + at.channel;
        if (one < at.end) raw_x[u] = load(p.x, element);
        if (one < at.end) raw_grad[u] = load(p.grad, element);
        if (kReadsY && one < at.end) raw_y[u] = load(p.y, element);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const long long one = pixel + u * at.rows;
        if (one >= at.end) break;
        const Values x = wide(raw_x[u]);
        Values grad = wide(raw_grad[u]), y = {};
        if constexpr (kReadsY) y = wide(raw_y[u]);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          grad.of[i] = before_activation(grad.of[i], x.of[i], y.of[i], norm.scale.of[i],
                                         norm.shift.of[i]);
          sum.of[i] += grad.of[i];
          product.of[i] += grad.of[i] * (x.of[i] - norm.mean.of[i]);
        }
        if constexpr (kReadsY) store(p.grad_residual, one * p.channels + at.channel, grad);
      }
    }
  }
  leave_sums(p, at, sum, product);
}

DEVICE void finish_gradient(const BatchNormParameters& p) {
  int channel;
  double sum, product;
  if (!add_partials(p, channel, sum, product)) return;
#if BATCH
  const float inverse = load_float(p.saved, channel + p.channels);
  const float scale = load_float(p.saved, channel + 2ll * p.channels);
  const double count = static_cast<double>(p.pixels);
  const double slope = product * inverse * inverse / count;
  store_float(p.coefficients, channel, scale);
  store_float(p.coefficients, channel + p.channels, static_cast<float>(-scale * slope));
  store_float(p.coefficients, channel + 2ll * p.channels,
              static_cast<float>(-scale * (sum / count)));
#else
  const float inverse = inverse_root(load_float(p.running_variance, channel) + p.eps);
#endif
  if (p.grad_weight) store_float(p.grad_weight, channel, static_cast<float>(product * inverse));
  if (p.grad_bias) store_float(p.grad_bias, channel, static_cast<float>(sum));
  if (p.grad_offset) store_float(p.grad_offset, channel, 0.f);
}

DEVICE void make_gradient(const BatchNormParameters& p) {
  const Place at = place(p);
  if (!at.used) return;
  // Whether pass 3 has already written the gradient before the activation.
  constexpr bool kDone = SUMS && kReadsY;
  constexpr bool kWithX = BATCH || (kReadsX && !kDone);
  const Norm norm = norm_of(p, at.channel);
#if BATCH
  const Values of_x = load_values<float>(p.coefficients, at.channel + p.channels);
  const Values of_one = load_values<float>(p.coefficients, at.channel + 2 * p.channels);
#endif
  constexpr int kUnroll = 2;
  for (long long pixel = at.begin + at.row; pixel < at.end; pixel += kUnroll * at.rows) {
    Raw<16> raw_x[kUnroll], raw_grad[kUnroll], raw_y[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows, element = one * p.channels + at.channel;
      if (kWithX && one < at.end) raw_x[u] = load(p.x, element);
      if (one < at.end) raw_grad[u] = load(kDone ? p.grad_residual : p.grad, element);
      if (kReadsY && !kDone && one < at.end) raw_y[u] = load(p.y, element);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const long long one = pixel + u * at.rows, element = one * p.channels + at.channel;
      if (one >= at.end) break;
      Values grad = wide(raw_grad[u]), x = {}, y = {};
      if constexpr (kWithX) x = wide(raw_x[u]);
      if constexpr (kReadsY && !kDone) y = wide(raw_y[u]);
      if constexpr (!kDone) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          grad.of[i] = before_activation(grad.of[i], x.of[i], y.of[i], norm.scale.of[i],
                                         norm.shift.of[i]);
        }
        if constexpr (kReadsY) store(p.grad_residual, element, grad);
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        grad.of[i] *= norm.scale.of[i];
#if BATCH
        grad.of[i] += of_x.of[i] * (x.of[i] - norm.mean.of[i]) + of_one.of[i];
#endif
      }
      store(p.grad_x, element, grad);
    }
  }
}

}  // namespace mmcontext

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    batch_norm(const mmcontext::BatchNormParameters p) {
#if PASS == 0
  mmcontext::sum_batch(p);
#elif PASS == 1
  mmcontext::finish_statistics(p);
#elif PASS == 2
  mmcontext::make_result(p);
#elif PASS == 3
  mmcontext::sum_gradient(p);
#elif PASS == 4
  mmcontext::finish_gradient(p);
#else
  mmcontext::make_gradient(p);
#endif
}
