// Interface between the operators of the local aggregation and the code that runs them.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "kernels.h"

namespace mmcontext {

using at::IntArrayRef;
using at::Tensor;

// Every pair is (vertical, horizontal).
struct Geometry {
  IntArrayRef kernel, stride, padding, dilation;
  bool interleaved;
};

// Whether the kernels, on CPU and GPU alike, support a dtype.
inline bool has_storage(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

inline Storage storage_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Storage::kFloat;
    case at::kDouble: return Storage::kDouble;
    case at::kBFloat16: return Storage::kBFloat16;
    case at::kHalf: return Storage::kHalf;
    default:
      TORCH_CHECK_TYPE(false, "the compiled local aggregation serves float32, float64, bfloat16 ",
                       "and float16, got ", t.scalar_type());
  }
}

// One task of the local aggregation, its operands checked and its target not empty:
//   kForward     source x,                   kernel w,                  target y
//   kGradInput   source gradient of y,       kernel w,                  target gradient of x
//   kGradWeight  source x,                   kernel gradient of y,      target gradient of w
// Maps are [B, C, rows, columns], kernels [B, groups, taps, rows, columns].
void run_on_cpu(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                const Geometry& geometry);

// The same on the tensors' GPU and its current stream.
void run_on_gpu(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                const Geometry& geometry);

}  // namespace mmcontext
