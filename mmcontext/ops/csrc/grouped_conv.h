// The steps of a convolution with narrow groups, for the operators built from them.
#pragma once

#include <ATen/ATen.h>

#include "grouped_plan.h"

namespace mmcontext {

// Everything about a call except its tensors. `on_host` runs all but the launches, on CPU tensors.
struct GroupedCall {
  int64_t stride, groups;
  bool on_host;
};

// Whether the kernels support a map; otherwise standard functions take it.
bool takes_grouped(const at::Tensor& x, bool on_host);

// The forward pass (x, w, bias -> y) or the gradient of x (gradient of y, w -> x), written to a
// target whose channels can be stored in aligned vectors of 16 bytes; `accumulate` adds to it.
void run_grouped_map(GroupedTask task, const at::Tensor& source, const at::Tensor& w,
                     const c10::optional<at::Tensor>& bias, const at::Tensor& target,
                     const GroupedCall& call, bool accumulate = false);

at::Tensor grouped_grad_weight(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w,
                               const GroupedCall& call);

// Starts compiling the gradient kernels of a new forward pass in the background.
void expect_grouped_gradients(const at::Tensor& x, const at::Tensor& w, bool bias,
                              const GroupedCall& call);

// The tensor in autocast's dtype. As for conv2d, cast weights are cached until autocast ends.
at::Tensor autocast_kept(const at::Tensor& t);

}  // namespace mmcontext
