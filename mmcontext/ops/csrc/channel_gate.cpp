// Channel gates on a GPU, with their derivatives (cuda/channel_gate.cu): the channels of each
// image are scaled by factors computed from their means. The reference is in Python
// (ops/channel_gate).
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "channel_gate.h"
#include "gpu_maps.h"
#include "layout.h"

namespace mmcontext {
namespace {

using OptionalTensor = c10::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kSwitch = "MMCONTEXT_CHANNEL_GATE";

Gate gate_of(const Maps& maps) { return maps.other.defined() ? kSoftmax : kSigmoid; }

// s [B, C, 1, 1] from logits, by differentiable functions.
Tensor composed_scale(const Tensor& logits, const Tensor& x, bool other) {
  if (!other) return logits.view({x.size(0), x.size(1), 1, 1}).sigmoid();
  const Tensor pairs = logits.view({x.size(0), x.size(1), 2});
  return (pairs.select(2, 0) - pairs.select(2, 1)).sigmoid().unsqueeze(2).unsqueeze(3);
}

double share(at::IntArrayRef size) { return 1. / static_cast<double>(size[2] * size[3]); }

at::ScalarType means_type(const Tensor& x, bool exact) {
  return exact ? at::kFloat : x.scalar_type();
}

// A new tensor over the same memory and with the same version counter, so that autograd notices
// in-place changes of either.
Tensor same(const Tensor& t) {
  Tensor other = at::alias(t);
  other.unsafeGetTensorImpl()->set_version_counter(t.unsafeGetTensorImpl()->version_counter());
  return other;
}

// Returns the means of maps, and the maps themselves. If Gated finds that its operands come from
// this node, it passes the gradient of the gated result back as that of the maps, and one pass
// here computes their gradients along both paths, the gate and the means. For a gradient of
// gradients Gated returns the true gradients of the maps, from the maps that this node has saved.
struct Means : torch::autograd::Function<Means> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x,
                               const OptionalTensor& other, bool exact) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Maps maps{x, given(other)};
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, maps.other});
    ctx->saved_data["size"] = x.sizes().vec();
    variable_list results{means_of(maps, means_type(x, exact), share(x.sizes())), same(x)};
    if (maps.other.defined()) results.push_back(same(maps.other));
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto size = ctx->saved_data["size"].toIntVector();
    const auto logits = ctx->saved_data.find("logits");
    const bool other = grads.size() > 2;
    const double scale = share(size);
    if (logits != ctx->saved_data.end() && grads[1].defined() && !at::GradMode::is_enabled()) {
      const Tensor& grad = grads[1];
      const Tensor factor = logits->second.toTensor();
      const Tensor of_means = grads[0].defined() ? grads[0].to(factor.scalar_type()).contiguous()
                                                 : Tensor();
      const Maps of = gradients_of_maps(grad, other, factor,
                                        other ? kSoftmax : kSigmoid, of_means, scale,
                                        ctx->needs_input_grad(0),
                                        other && ctx->needs_input_grad(1));
      return {of.x, of.other, Tensor()};
    }
    variable_list results(3);
    for (size_t i = 1; i < grads.size(); ++i) {
      Tensor& result = results[i - 1];
      result = grads[i];
      if (!grads[0].defined()) continue;
      const Tensor by_means = (grads[0] * scale).expand(size);
      result = result.defined() ? result + by_means : by_means;
    }
    return results;
  }
};

using MeansNode = torch::autograd::CppNode<Means>;

// The Means node that produced the operands; null if there is none.
MeansNode* means_behind(const Maps& maps) {
  const auto result_of_means = [](const Tensor& t, uint32_t number) -> MeansNode* {
    return t.output_nr() == number ? dynamic_cast<MeansNode*>(t.grad_fn().get()) : nullptr;
  };
  MeansNode* const node = result_of_means(maps.x, 1);
  return !maps.other.defined() || result_of_means(maps.other, 2) == node ? node : nullptr;
}

struct Gated : torch::autograd::Function<Gated> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& other,
                        const Tensor& logits, bool joined) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Maps maps{x, given(other)};
    ctx->save_for_backward({x, maps.other, logits});
    ctx->saved_data["joined"] = joined;
    return result_of(maps, logits, gate_of(maps));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list kept = ctx->get_saved_variables();
    Maps maps{kept[0], kept[1]};
    const Tensor& logits = kept[2];
    const bool other = maps.other.defined(), joined = ctx->saved_data["joined"].toBool();
    Tensor of_logits;
    Maps of;
    if (at::GradMode::is_enabled()) {
      // Hooks on saved tensors may have dropped the graph; then there is no node.
      if (MeansNode* const node = joined ? means_behind(maps) : nullptr) {
        const variable_list before = node->ctx_.get_saved_variables();
        maps = {before[0], before[1]};
      }
      const Tensor s = composed_scale(logits, maps.x, other), &grad = grads[0];
      of.x = grad * s;
      if (other) of.other = grad - of.x;
      Tensor slope = (grad * (other ? maps.x - maps.other : maps.x)).sum({2, 3}, true);
      slope = (slope * s * (1 - s)).view({maps.x.size(0), -1, 1});
      of_logits = (other ? at::cat({slope, -slope}, 2) : slope).view(logits.sizes());
    } else {
      const Tensor grad = dense_gradient(grads[0], maps.x);
      if (ctx->needs_input_grad(other ? 2 : 1)) {
        of_logits = gradient_of_factor(maps, grad, logits, gate_of(maps));
      }
      if (joined) {
        of.x = grad;
      } else {
        of = gradients_of_maps(grad, other, logits, gate_of(maps), Tensor(), 0.,
                               ctx->needs_input_grad(0), other && ctx->needs_input_grad(1));
      }
    }
    return {of.x, of.other, of_logits, Tensor()};
  }
};

std::string refusal(const Tensor& x, const OptionalTensor& other, bool on_host) {
  std::string reason = map_refusal(x, on_host);
  if (!reason.empty()) return reason;
  if (other && (other->sizes() != x.sizes() || other->device() != x.device() ||
                other->scalar_type() != x.scalar_type() ||
                !lies_by_pixel(*other))) {
    return "the other map differs from x in shape, dtype, device or layout";
  }
  return x.size(0) > 65535 ? "there are more than 65535 images" : "";
}

bool serves(const Tensor& x, const OptionalTensor& other, c10::string_view method) {
  const std::string chosen = chosen_method(kSwitch, method);
  return chosen != "torch" && refusal(x, other, chosen == "null").empty();
}

// Means [B, C, 1, 1] of the sum of the maps, in float32 if `exact`, and the maps to pass to
// gate_channels; nothing if the kernels do not support them.
std::vector<Tensor> gate_means(const Tensor& x, const OptionalTensor& other, bool exact,
                               c10::string_view method) {
  if (!serves(x, other, method)) return {};
  const Tensor second = given(other);
  if (wants_gradient({&x, &second})) return Means::apply(x, other, exact);
  at::AutoDispatchBelowADInplaceOrView below;
  std::vector<Tensor> results{means_of({x, second}, means_type(x, exact), share(x.sizes())), x};
  if (other) results.push_back(second);
  return results;
}

// For maps returned by gate_means.
Tensor gate_channels(const Tensor& x, const OptionalTensor& other, const Tensor& logits) {
  const Maps maps{x, given(other)};
  const int64_t each = other ? 2 : 1;
  TORCH_CHECK_VALUE(logits.numel() == x.size(0) * x.size(1) * each && logits.size(0) == x.size(0),
                    "the gate of maps ", x.sizes(), " needs [", x.size(0), ", ",
                    x.size(1) * each, ", 1, 1] logits, got ", logits.sizes());
  const bool exact = logits.scalar_type() == at::kFloat;
  const Tensor there = (exact ? logits : logits.to(x.scalar_type())).contiguous();
  if (wants_gradient({&x, &maps.other, &there})) {
    MeansNode* const node = means_behind(maps);
    if (node != nullptr) {
      TORCH_CHECK(node->ctx_.saved_data.count("logits") == 0,
                  "the maps that gate_means returns can be used in one gate only");
      node->ctx_.saved_data["logits"] = there.detach();
    }
    return Gated::apply(x, other, there, node != nullptr);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return result_of(maps, there, gate_of(maps));
}

// The mean of a grouped convolution in which every tap meets every pixel: a matrix product.
struct Convolution {
  Tensor weight;                           // [C, C / groups, Kh, Kw]
  int64_t groups, pixels;                  // pixels of the result

  int64_t width() const { return weight.size(1); }
  // [groups, C / groups outputs, C / groups]
  Tensor taps() const {
    return weight.sum({2, 3}, false, at::kFloat).view({groups, -1, width()});
  }
  // Vectors [B, C] as [groups, B, C / groups].
  Tensor by_group(const Tensor& vectors) const {
    return vectors.view({vectors.size(0), groups, -1}).transpose(0, 1);
  }
  // The products of the groups, as vectors.
  Tensor product(const Tensor& vectors, const Tensor& matrices) const {
    Tensor result = at::empty({vectors.size(0), groups * matrices.size(2)}, vectors.options());
    Tensor by = by_group(result);
    at::bmm_out(by, by_group(vectors), matrices);
    return result;
  }
};

struct GatedByConvolution : torch::autograd::Function<GatedByConvolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        int64_t groups, int64_t pixels) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
    const Convolution conv{weight, groups, pixels};
    const Tensor taps = conv.taps();
    const Tensor means = means_of({x, {}}, at::kFloat, 1. / pixels).flatten(1);
    const Tensor gate = conv.product(means, taps.transpose(1, 2));
    ctx->save_for_backward({x, weight, means, taps, gate});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["pixels"] = pixels;
    return result_of({x, {}}, gate, kFactor);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
    const variable_list kept = ctx->get_saved_variables();
    const Tensor &x = kept[0], &weight = kept[1];
    const Convolution conv{weight, ctx->saved_data["groups"].toInt(),
                           ctx->saved_data["pixels"].toInt()};
    const auto of_weight = [&](const Tensor& of_gate, const Tensor& means) {
      const Tensor of_taps = at::bmm(conv.by_group(of_gate).transpose(1, 2),
                                     conv.by_group(means));
      return of_taps.to(weight.scalar_type()).reshape({weight.size(0), weight.size(1), 1, 1})
          .expand(weight.sizes());
    };
    if (at::GradMode::is_enabled()) {
      const Tensor wide = x.to(at::kFloat), taps = conv.taps(), grad = grads[0].to(at::kFloat);
      const auto times = [&](const Tensor& vectors, const Tensor& matrices) {
        return at::bmm(conv.by_group(vectors), matrices).transpose(0, 1).flatten(1);
      };
      const Tensor means = wide.sum({2, 3}) / conv.pixels;
      const Tensor gate = times(means, taps.transpose(1, 2));
      const Tensor of_gate = (grad * wide).sum({2, 3});
      const auto as_map = [](const Tensor& t) { return t.unsqueeze(2).unsqueeze(3); };
      const Tensor of_x = grad * as_map(gate) + as_map(times(of_gate, taps) / conv.pixels);
      return {of_x.to(x.scalar_type()), of_weight(of_gate, means), Tensor(), Tensor()};
    }
    const Tensor &means = kept[2], &taps = kept[3], &gate = kept[4];
    const Tensor grad = dense_gradient(grads[0], x);
    const Tensor of_gate = gradient_of_factor({x, {}}, grad, gate, kFactor);
    variable_list results(4);
    if (ctx->needs_input_grad(0)) {
      results[0] = gradients_of_maps(grad, false, gate, kFactor, conv.product(of_gate, taps),
                                     1. / conv.pixels, true, false).x;
    }
    if (ctx->needs_input_grad(1)) results[1] = of_weight(of_gate, means);
    return results;
  }
};

// x times the mean over `pixels` of a grouped convolution of x; nothing if the kernels do not
// support it.
OptionalTensor gate_by_convolution(const Tensor& x, const Tensor& weight, int64_t groups,
                                   int64_t pixels, c10::string_view method) {
  if (!serves(x, c10::nullopt, method)) return {};
  TORCH_CHECK_VALUE(weight.dim() == 4 && groups > 0 && weight.size(0) == x.size(1) &&
                        weight.size(1) * groups == x.size(1) && pixels > 0 &&
                        weight.device() == x.device(),
                    "a gate of maps ", x.sizes(), " and ", groups, " groups has a weight of the "
                    "shape ", weight.sizes(), " over ", pixels, " pixels");
  if (wants_gradient({&x, &weight})) {
    return GatedByConvolution::apply(x, weight, groups, pixels);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  const Convolution conv{weight, groups, pixels};
  const Tensor means = means_of({x, {}}, at::kFloat, 1. / pixels).flatten(1);
  return result_of({x, {}}, conv.product(means, conv.taps().transpose(1, 2)), kFactor);
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("gate_means(Tensor x, Tensor? other, bool exact, str method) -> Tensor[]");
  m.def("gate_channels(Tensor x, Tensor? other, Tensor logits) -> Tensor");
  m.def("gate_by_convolution(Tensor x, Tensor weight, int groups, int pixels, str method) "
        "-> Tensor?");
  m.def("channel_gate_refusal(Tensor x, Tensor? other, bool on_host) -> str");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("gate_means", &mmcontext::gate_means);
  m.impl("gate_channels", &mmcontext::gate_channels);
  m.impl("gate_by_convolution", &mmcontext::gate_by_convolution);
  m.impl("channel_gate_refusal", &mmcontext::refusal);
}
