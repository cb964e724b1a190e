// The parts of the operator conv_norm_act: convolution (conv.cpp) and norms (norm.cpp).
#pragma once

#include <ATen/ATen.h>
#include <c10/util/Optional.h>  // std::optional since torch 2.5

#include <string>
#include <vector>

#include "kernels.h"

namespace mmcontext {

using MaybeTensor = c10::optional<at::Tensor>;

// The tensor's data, checked; null if there is no tensor.
const float* per_channel(const MaybeTensor& t, int64_t channels, const char* name);

// One scale and one shift per channel, or per sample and channel.
struct ScaleAndShift {
  std::vector<float> scale, shift;
};

// A batch norm with its running statistics, or no norm if there is no mean; with `groups`, a group
// norm, which has no running statistics.
struct Norm {
  const MaybeTensor&mean, &variance, &weight, &bias;
  double eps;
  int64_t groups;

  ScaleAndShift of_batch(int64_t channels) const;
  ScaleAndShift of_groups(const at::Tensor& x) const;
};

struct ConvArguments {
  const at::Tensor& weight;
  const MaybeTensor& bias;
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
};

// Why the C++ convolution does not support the call; why another is at least as fast. Empty if
// there is no such reason.
std::string conv_refusal(const at::Tensor& x, const ConvArguments& conv);
std::string conv_disadvantage(const at::Tensor& x, const ConvArguments& conv);

// Size of the convolution's output, checked.
std::vector<int64_t> conv_size(const at::Tensor& x, const ConvArguments& conv);

// activation(norm(conv(x)) + residual) of a channels-last x, in one pass. The residual has the
// shape and layout of the output.
at::Tensor convolve(const at::Tensor& x, const ConvArguments& conv, const Norm& norm,
                    const MaybeTensor& residual, Activation activation);

// activation(scale * x + shift + residual) written to `out`, which may be x; all in one layout.
void scale_and_add(const at::Tensor& x, const ScaleAndShift& by, const MaybeTensor& residual,
                   Activation activation, const at::Tensor& out);

}  // namespace mmcontext
