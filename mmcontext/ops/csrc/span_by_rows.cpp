// A 1x1 convolution of a channels-last map with a contiguous result: matrix products, with no
// extra pass over memory for the bias or a change of layout, forwards or backwards.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "gpu_maps.h"

namespace mmcontext {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Columns of ones appended to the channels; each is multiplied by an equal share of the bias.
// Eight of them keep the rows aligned in half precision.
constexpr int64_t kOnes = 8;

// [B, pixels, C] of a channels-last map, without a copy.
Tensor by_pixel(const Tensor& map) { return map.flatten(2).transpose(1, 2); }

Tensor with_ones(const Tensor& r) { return at::constant_pad_nd(by_pixel(r), {0, kOnes}, 1); }

Tensor multiply(const Tensor& r, const Tensor& weight, const Tensor& bias) {
  const auto type = r.scalar_type();
  const Tensor share = (bias / kOnes).to(type).unsqueeze(1).expand({-1, kOnes});
  const Tensor whole = at::cat({weight.flatten(1).to(type), share}, 1);
  const Tensor y = at::bmm(whole.unsqueeze(0).expand({r.size(0), -1, -1}),
                           with_ones(r).transpose(1, 2));
  return y.view({r.size(0), weight.size(0), r.size(2), r.size(3)});
}

struct Differentiable : torch::autograd::Function<Differentiable> {
  static Tensor forward(AutogradContext* ctx, const Tensor& r, const Tensor& weight,
                        const Tensor& bias) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({r, weight, bias});
    return multiply(r, weight, bias);
  }

  // Made of differentiable functions, so that it can be differentiated again.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const variable_list kept = ctx->get_saved_variables();
    const Tensor &r = kept[0], &weight = kept[1], &bias = kept[2];
    const Tensor grad = grads[0].to(r.scalar_type()).flatten(2);
    variable_list result(3);
    if (ctx->needs_input_grad(0)) {
      const Tensor matrix = weight.flatten(1).to(r.scalar_type());
      result[0] = at::bmm(grad.transpose(1, 2), matrix.unsqueeze(0).expand({r.size(0), -1, -1}))
                      .transpose(1, 2).view(r.sizes());
    }
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      const auto exact = r.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      const Tensor sums = at::bmm(grad, with_ones(r)).sum(0, false, exact);
      result[1] = sums.narrow(1, 0, r.size(1)).to(weight.scalar_type()).view(weight.sizes());
      result[2] = sums.select(1, r.size(1)).to(bias.scalar_type());
    }
    return result;
  }
};

Tensor span_by_rows(const Tensor& r, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK_VALUE(r.dim() == 4 && weight.dim() >= 2 && bias.dim() == 1 &&
                        weight.size(0) == bias.size(0) &&
                        weight.numel() == weight.size(0) * r.size(1),
                    "r [B, Cr, H, W], weight [Co, Cr, 1, 1] and bias [Co] do not fit, got ",
                    r.sizes(), ", ", weight.sizes(), " and ", bias.sizes());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  if (!wants_gradient({&r, &weight, &bias})) {
    at::AutoDispatchBelowADInplaceOrView below;
    return multiply(r, weight, bias);
  }
  return Differentiable::apply(r, weight, bias);
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("span_by_rows(Tensor r, Tensor weight, Tensor bias) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("span_by_rows", &mmcontext::span_by_rows);
}
