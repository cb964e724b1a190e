// The logits of a channel gate: two 1x1 convolutions of the means of a map, with a batch norm and
// an activation in between. The means are few, so that float32 costs nothing, while every cast and
// every bias would be a launch of its own.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "batch_norm_act.h"
#include "gpu_maps.h"
#include "local_aggregation.h"

namespace mmcontext {
namespace {

Tensor as_map(const Tensor& vectors) { return vectors.unsqueeze(2).unsqueeze(3); }

// means [B, C, 1, 1], weight [A, C, 1, 1], last_weight [D, A, 1, 1], all float32; the norm as for
// batch_norm_act. Nothing if the kernels for the norm do not support the call.
OptionalTensor pooled_logits(const Tensor& means, const Tensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                             const OptionalTensor& mean, const OptionalTensor& variance,
                             const OptionalTensor& batches, bool batch, double momentum,
                             double eps, c10::string_view activation, const Tensor& last_weight,
                             const OptionalTensor& last_bias, c10::string_view method) {
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  TORCH_CHECK_VALUE(means.dim() == 4 && means.numel() == means.size(0) * means.size(1) &&
                        weight.numel() == weight.size(0) * means.size(1) &&
                        last_weight.numel() == last_weight.size(0) * weight.size(0),
                    "means [B, C, 1, 1] and weights [A, C, 1, 1], [D, A, 1, 1] do not fit, got ",
                    means.sizes(), ", ", weight.sizes(), " and ", last_weight.sizes());
  const OptionalTensor none;
  const Tensor hidden = at::linear(means.flatten(1), weight.flatten(1), batch ? none : bias);
  const OptionalTensor normed =
      batch_norm_act(as_map(hidden), none, norm_weight, norm_bias, mean, variance, batches,
                     batch ? bias : none, batch, momentum, eps, activation, method);
  if (!normed) return {};
  return as_map(at::linear(normed->flatten(1), last_weight.flatten(1), last_bias));
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("pooled_logits(Tensor means, Tensor weight, Tensor? bias, Tensor? norm_weight, "
        "Tensor? norm_bias, Tensor(a!)? mean, Tensor(b!)? variance, Tensor(c!)? batches, "
        "bool batch, float momentum, float eps, str activation, Tensor last_weight, "
        "Tensor? last_bias, str method) -> Tensor?");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("pooled_logits", &mmcontext::pooled_logits);
}
