// The steps of a convolution of narrow groups, for the operators that are made of them.
#pragma once

#include <ATen/ATen.h>

#include "grouped_plan.h"

namespace mmcontext {

// Everything about a call but its tensors. `on_host` runs all but the launches, on the CPU.
struct GroupedCall {
  int64_t stride, groups;
  bool on_host;
};

// Whether the kernels take a map; else it is for standard functions.
bool takes_grouped(const at::Tensor& x, bool on_host);

// The forward pass (x, w, bias -> y) or the gradient of x (gradient of y, w -> x) into a target
// of 16 aligned bytes of channels; `accumulate`: added to what is there.
void run_grouped_map(GroupedTask task, const at::Tensor& source, const at::Tensor& w,
                     const c10::optional<at::Tensor>& bias, const at::Tensor& target,
                     const GroupedCall& call, bool accumulate = false);

at::Tensor grouped_grad_weight(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w,
                               const GroupedCall& call);

// Has the kernels of a new forward pass' gradients compiled in the background.
void expect_grouped_gradients(const at::Tensor& x, const at::Tensor& w, bool bias,
                              const GroupedCall& call);

// In autocast's dtype; as conv2d's, weights that are cast are kept until autocast ends.
at::Tensor autocast_kept(const at::Tensor& t);

}  // namespace mmcontext
