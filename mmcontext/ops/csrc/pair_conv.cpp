// The 1x1 convolution of two channels-last maps without concatenating them: one matrix product for
// each, the second of which accumulates onto the first.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "gpu_maps.h"
#include "layout.h"
#include "local_aggregation.h"

namespace mmcontext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kSwitch = "MMCONTEXT_PAIR_CONV";

// [pixels, C] of a channels-last [B, C, H, W].
Tensor pixels(const Tensor& map) {
  return map.permute({0, 2, 3, 1}).reshape({-1, map.size(1)});
}

Tensor map_of(const Tensor& pixels, const Tensor& like) {
  return pixels.view({like.size(0), like.size(2), like.size(3), pixels.size(1)})
      .permute({0, 3, 1, 2});
}

// The part of [2, Co, C] that one group of the weight fills. With several groups the channels of
// the two maps alternate; with one, those of the second map follow those of the first.
Tensor block(const Tensor& matrices, int64_t group, int64_t groups) {
  const int64_t outputs = matrices.size(1) / groups, inputs = matrices.size(2) / groups;
  return matrices.narrow(1, group * outputs, outputs).narrow(2, group * inputs, inputs);
}
Tensor weight_of(const Tensor& weight, int64_t group, int64_t groups) {
  const int64_t outputs = weight.size(0) / groups, inputs = weight.size(1) / 2;
  const Tensor own = weight.narrow(0, group * outputs, outputs);
  return groups == 1 ? own.view({outputs, 2, inputs}).transpose(0, 1)
                     : own.view({outputs, inputs, 2}).permute({2, 0, 1});
}

// [2, Co, C]: a block-diagonal matrix for each map.
Tensor matrices_of(const Tensor& weight, int64_t groups, at::ScalarType type) {
  const int64_t size[] = {2, weight.size(0), weight.size(1) / 2 * groups};
  const auto options = weight.options().dtype(type);
  Tensor matrices = groups == 1 ? at::empty(size, options) : at::zeros(size, options);
  for (int64_t i = 0; i < groups; ++i) {
    block(matrices, i, groups).copy_(weight_of(weight, i, groups));
  }
  return matrices;
}

Tensor product(const Tensor& x, const Tensor& other, const Tensor& matrices) {
  Tensor y = at::mm(pixels(x), matrices[0].t());
  at::addmm_out(y, y, pixels(other), matrices[1].t());
  return map_of(y, x);
}

struct PairConv : torch::autograd::Function<PairConv> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& other,
                        const Tensor& weight, int64_t groups) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
    const Tensor matrices = matrices_of(weight, groups, x.scalar_type());
    ctx->save_for_backward({x, other, weight, matrices});
    ctx->saved_data["groups"] = groups;
    return product(x, other, matrices);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
    const variable_list kept = ctx->get_saved_variables();
    const Tensor &x = kept[0], &other = kept[1], &weight = kept[2];
    const int64_t groups = ctx->saved_data["groups"].toInt();
    const bool second = at::GradMode::is_enabled();
    Tensor matrices = kept[3];
    if (second) {
      std::vector<Tensor> rows;
      for (int64_t i = 0; i < groups; ++i) {
        const Tensor own = weight_of(weight, i, groups).to(x.scalar_type());
        const int64_t before = i * own.size(2), after = (groups - 1 - i) * own.size(2);
        rows.push_back(at::constant_pad_nd(own, {before, after}));
      }
      matrices = at::cat(rows, 1);
    }
    const Tensor grad = pixels(dense_gradient(grads[0], x));
    variable_list results(4);
    const Tensor* const maps[] = {&x, &other};
    for (int i = 0; i < 2; ++i) {
      if (ctx->needs_input_grad(i)) results[i] = map_of(at::mm(grad, matrices[i]), x);
    }
    if (ctx->needs_input_grad(2) && groups == 1 && !second) {
      const Tensor of = at::empty({weight.size(0), weight.size(1)}, grad.options());
      for (int i = 0; i < 2; ++i) {
        Tensor half = of.narrow(1, i * x.size(1), x.size(1));
        at::mm_out(half, grad.t(), pixels(*maps[i]));
      }
      results[2] = of.to(weight.scalar_type()).view(weight.sizes());
    } else if (ctx->needs_input_grad(2)) {
      const Tensor of = at::stack({at::mm(grad.t(), pixels(*maps[0])),
                                   at::mm(grad.t(), pixels(*maps[1]))});
      std::vector<Tensor> rows;
      for (int64_t i = 0; i < groups; ++i) {
        const Tensor own = block(of, i, groups);
        rows.push_back((groups == 1 ? own.transpose(0, 1) : own.permute({1, 2, 0}))
                           .reshape({own.size(1), -1}));
      }
      results[2] = (groups == 1 ? rows[0] : at::cat(rows)).to(weight.scalar_type())
                       .view(weight.sizes());
    }
    return results;
  }
};

std::string refusal(const Tensor& x, const Tensor& other, bool on_host) {
  std::string reason = map_refusal(x, on_host);
  if (reason.empty() && (other.sizes() != x.sizes() || other.device() != x.device() ||
                         other.scalar_type() != x.scalar_type() ||
                         !lies_by_pixel(other))) {
    return "the other map differs from x in shape, dtype, device or layout";
  }
  if (reason.empty() && x.scalar_type() == at::kFloat && !on_host) {
    return "it is meant for half precision";
  }
  return reason;
}

// Nothing if it does not support the operands.
c10::optional<Tensor> pair_conv(const Tensor& x, const Tensor& other, const Tensor& weight,
                                int64_t groups, c10::string_view method) {
  const std::string chosen = chosen_method(kSwitch, method);
  if (chosen == "torch" || !refusal(x, other, chosen == "null").empty()) return {};
  TORCH_CHECK_VALUE(groups > 0 && weight.dim() == 4 && weight.size(1) * groups == 2 * x.size(1) &&
                        weight.size(0) % groups == 0 && weight.size(2) * weight.size(3) == 1 &&
                        weight.device() == x.device() && weight.is_contiguous(),
                    "the weight of a 1x1 convolution of two maps ", x.sizes(), " in ", groups,
                    " groups has the shape ", weight.sizes());
  if (wants_gradient({&x, &other, &weight})) return PairConv::apply(x, other, weight, groups);
  at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  return product(x, other, matrices_of(weight, groups, x.scalar_type()));
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("pair_conv(Tensor x, Tensor other, Tensor weight, int groups, str method) -> Tensor?");
  m.def("pair_conv_refusal(Tensor x, Tensor other, bool on_host) -> str");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("pair_conv", &mmcontext::pair_conv);
  m.impl("pair_conv_refusal", &mmcontext::refusal);
}
