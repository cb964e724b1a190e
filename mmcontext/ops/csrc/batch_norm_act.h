// Batch norm, residual and activation of channels-last maps on a GPU.
#pragma once

#include <ATen/ATen.h>

namespace mmcontext {

using OptionalTensor = c10::optional<at::Tensor>;

// activation(norm(x) + residual); nothing if the kernels do not support the call or the environment
// turns them off. batch: with the statistics of the batch; then offset [C] is taken to have been
// added to x, which only the running mean notices.
OptionalTensor batch_norm_act(const at::Tensor& x, const OptionalTensor& residual,
                              const OptionalTensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& mean, const OptionalTensor& variance,
                              const OptionalTensor& batches, const OptionalTensor& offset,
                              bool batch, double momentum, double eps,
                              c10::string_view activation, c10::string_view method);

}  // namespace mmcontext
