// What norms and convolutions share at inference: checks, and a norm as scale and shift.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "kernels.h"

namespace mmcontext {

Activation activation_of(c10::string_view name);

// Channels-last wins where a tensor is both: its rows are longer.
bool by_pixel(const at::Tensor& x);

// Null where there is none.
const float* per_channel(const std::optional<at::Tensor>& t, int64_t channels, const char* name);

// Of a batch norm; no mean: no norm.
struct Norm {
  const std::optional<at::Tensor>&mean, &variance, &weight, &bias;
  double eps;
};

void scale_and_shift(const Norm& norm, int64_t channels, std::vector<float>& scale,
                     std::vector<float>& shift);

}  // namespace mmcontext
