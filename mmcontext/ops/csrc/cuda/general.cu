// Any kernel size, stride, dilation, padding, layout and storage: one thread per output element,
// 64-bit addresses. Options: STORAGE (StorageOf), TASK (0 forward, 1 gradient of x, 2 of w).
#include "parameters.cuh"
#include "primitives.cuh"

namespace mmcontext {

using T = StorageOf<STORAGE>::type;
using Sum = StorageOf<STORAGE>::sum;

struct Place { long long batch; int channel, tap, row, col; };

// The position of element `index`. The `inner` channels (or groups * taps) are the fastest axis of
// a channels-last target.
template <class Index>
DEVICE Place place_of(Index index, int inner, int rows, int cols, bool channels_last) {
  Place at;
  if (channels_last) {
    at.channel = static_cast<int>(index % Index(inner));
    index /= Index(inner);
  }
  at.col = static_cast<int>(index % Index(cols));
  index /= Index(cols);
  at.row = static_cast<int>(index % Index(rows));
  index /= Index(rows);
  if (!channels_last) {
    at.channel = static_cast<int>(index % Index(inner));
    index /= Index(inner);
  }
  at.batch = static_cast<long long>(index);
  at.tap = 0;
  return at;
}

DEVICE const T* element(const DeviceOperand& of, long long batch, long long channel,
                        long long tap, long long row, long long col) {
  return reinterpret_cast<const T*>(of.address) + batch * of.batch + channel * of.channel +
         tap * of.tap + row * of.row + col * of.col;
}

DEVICE Sum forward_value(const GeneralParameters& p, const Place& at) {
  const int group = p.interleaved ? at.channel % p.groups : at.channel / (p.channels / p.groups);
  Sum sum = 0;
  for (int kh = 0; kh < p.kernel_h; ++kh) {
    const long long row = static_cast<long long>(at.row) * p.stride_h + kh * p.dilation_h - p.pad_h;
    if (row < 0 || row >= p.in_rows) continue;
    for (int kw = 0; kw < p.kernel_w; ++kw) {
      const long long col =
          static_cast<long long>(at.col) * p.stride_w + kw * p.dilation_w - p.pad_w;
      if (col < 0 || col >= p.in_cols) continue;
      sum += widen(load_one(element(p.kernel, at.batch, group, kh * p.kernel_w + kw, at.row,
                                    at.col))) *
             widen(load_one(element(p.source, at.batch, at.channel, 0, row, col)));
    }
  }
  return sum;
}

DEVICE Sum grad_input_value(const GeneralParameters& p, const Place& at) {
  const int group = p.interleaved ? at.channel % p.groups : at.channel / (p.channels / p.groups);
  Sum sum = 0;
  for (int kh = 0; kh < p.kernel_h; ++kh) {
    const long long above = static_cast<long long>(at.row) + p.pad_h - kh * p.dilation_h;
    const long long row = above / p.stride_h;
    if (above < 0 || row * p.stride_h != above || row >= p.out_rows) continue;
    for (int kw = 0; kw < p.kernel_w; ++kw) {
      const long long before = static_cast<long long>(at.col) + p.pad_w - kw * p.dilation_w;
      const long long col = before / p.stride_w;
      if (before < 0 || col * p.stride_w != before || col >= p.out_cols) continue;
      sum += widen(load_one(element(p.kernel, at.batch, group, kh * p.kernel_w + kw, row, col))) *
             widen(load_one(element(p.source, at.batch, at.channel, 0, row, col)));
    }
  }
  return sum;
}

DEVICE Sum grad_weight_value(const GeneralParameters& p, const Place& at) {
  const long long row = static_cast<long long>(at.row) * p.stride_h +
                        at.tap / p.kernel_w * p.dilation_h - p.pad_h;
  const long long col = static_cast<long long>(at.col) * p.stride_w +
                        at.tap % p.kernel_w * p.dilation_w - p.pad_w;
  Sum sum = 0;
  if (row < 0 || row >= p.in_rows || col < 0 || col >= p.in_cols) return sum;
  const int shared = p.channels / p.groups;
  for (int i = 0; i < shared; ++i) {
    const int channel = p.interleaved ? i * p.groups + at.channel : at.channel * shared + i;
    sum += widen(load_one(element(p.kernel, at.batch, channel, 0, at.row, at.col))) *
           widen(load_one(element(p.source, at.batch, channel, 0, row, col)));
  }
  return sum;
}

}  // namespace mmcontext

extern "C" __global__ void __launch_bounds__(256)
    aggregate_general(const mmcontext::GeneralParameters p) {
  using namespace mmcontext;
  const int taps = p.kernel_h * p.kernel_w;
  const int inner = TASK == 2 ? p.groups * taps : p.channels;
  const int rows = TASK == 1 ? p.in_rows : p.out_rows, cols = TASK == 1 ? p.in_cols : p.out_cols;
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count;
       i += step) {
    Place at = p.count >> 32
        ? place_of(static_cast<unsigned long long>(i), inner, rows, cols, p.channels_last)
        : place_of(static_cast<unsigned>(i), inner, rows, cols, p.channels_last);
    if (TASK == 2) {
      at.tap = at.channel % taps;
      at.channel /= taps;
    }
    T value;
    if constexpr (TASK == 0) narrow(forward_value(p, at), value);
    if constexpr (TASK == 1) narrow(grad_input_value(p, at), value);
    if constexpr (TASK == 2) narrow(grad_weight_value(p, at), value);
    global_store<sizeof(T)>(const_cast<T*>(element(p.target, at.batch, at.channel, at.tap,
                                                   at.row, at.col)),
                            bit_cast<Raw<sizeof(T)>>(value));
  }
}
