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

// Columns appended to the channels, each 1 / kMore, and to the weight, each the bias: their product
// is the bias. Eight of them keep the rows aligned in half precision.
constexpr int64_t kMore = 8;

// [B, pixels, C] of a channels-last map, without a copy.
Tensor by_pixel(const Tensor& map) { return map.flatten(2).transpose(1, 2); }

// [B, pixels, C + kMore]. (No cat, which would need the constant as a tensor.)
Tensor extended(const Tensor& r) {
  const int64_t channels = r.size(1);
  Tensor rows = at::empty({r.size(0), r.size(2) * r.size(3), channels + kMore},
                          r.options().memory_format(at::MemoryFormat::Contiguous));
  rows.narrow(2, 0, channels).copy_(by_pixel(r));
  rows.narrow(2, channels, kMore).fill_(1. / kMore);
  return rows;
}

// [Co, C + kMore] in `type`.
Tensor with_bias(const Tensor& weight, const Tensor& bias, at::ScalarType type) {
  const Tensor matrix = weight.flatten(1);
  Tensor whole = at::empty({matrix.size(0), matrix.size(1) + kMore}, matrix.options().dtype(type));
  whole.narrow(1, 0, matrix.size(1)).copy_(matrix);
  whole.narrow(1, matrix.size(1), kMore).copy_(bias.unsqueeze(1));
  return whole;
}

// The same matrix for all images.
Tensor for_all(const Tensor& matrix, const Tensor& r) {
  return matrix.unsqueeze(0).expand({r.size(0), -1, -1});
}

Tensor product_of(const Tensor& r, const Tensor& whole) {
  return at::bmm(for_all(whole, r), extended(r).transpose(1, 2))
      .view({r.size(0), whole.size(0), r.size(2), r.size(3)});
}

struct Differentiable : torch::autograd::Function<Differentiable> {
  static Tensor forward(AutogradContext* ctx, const Tensor& r, const Tensor& weight,
                        const Tensor& bias) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor whole = with_bias(weight, bias, r.scalar_type());
    ctx->save_for_backward({r, weight, bias, whole});
    return product_of(r, whole);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const variable_list kept = ctx->get_saved_variables();
    const Tensor &r = kept[0], &weight = kept[1], &bias = kept[2];
    const int64_t channels = r.size(1);
    const Tensor grad = grads[0].to(r.scalar_type()).flatten(2);
    variable_list result(3);
    // To be differentiated again, the gradients have to depend on r and the weight themselves.
    const bool again = at::GradMode::is_enabled();
    if (ctx->needs_input_grad(0)) {
      const Tensor matrix = again ? weight.flatten(1).to(r.scalar_type())
                                  : kept[3].narrow(1, 0, channels);
      result[0] = at::bmm(grad.transpose(1, 2), for_all(matrix, r)).transpose(1, 2)
                      .view(r.sizes());
    }
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      const auto exact = r.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      const Tensor rows = again ? at::constant_pad_nd(by_pixel(r), {0, kMore}, 1. / kMore)
                                : extended(r);
      const Tensor products = at::bmm(grad, rows);
      result[1] = products.narrow(2, 0, channels).sum(0, false, exact)
                      .to(weight.scalar_type()).view(weight.sizes());
      result[2] = products.narrow(2, channels, kMore).sum(at::IntArrayRef{0, 2}, false, exact)
                      .to(bias.scalar_type());
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
    return product_of(r, with_bias(weight, bias, r.scalar_type()));
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
