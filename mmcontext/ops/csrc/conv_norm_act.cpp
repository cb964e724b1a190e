// The operator conv_norm_act for float32 maps on the CPU, at inference. Its schema and its
// reference are in conv_norm_act/*.py.
#include "conv_norm_act.h"

#include <c10/core/GradMode.h>
#include <torch/library.h>

#include "layout.h"

namespace mmcontext {
namespace {

using at::Tensor;
using c10::string_view;

Activation activation_of(string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kReLU;
  TORCH_CHECK_VALUE(name == "silu", "activation must be none, relu or silu, got ", name);
  return Activation::kSiLU;
}

// Whether the residual, if any, can be added in the epilogue that writes the map.
bool fits(const MaybeTensor& residual, at::IntArrayRef sizes, at::MemoryFormat layout) {
  return !residual || (residual->scalar_type() == at::kFloat && residual->sizes() == sizes &&
                       residual->is_contiguous(layout));
}

// torch's convolution. oneDNN is slow with strides: a strided 1x1 convolution takes its subset of
// the pixels first.
Tensor library_convolution(const Tensor& x, const ConvArguments& conv) {
  const auto is = [](at::IntArrayRef pair, int64_t value) {
    return pair[0] == value && pair[1] == value;
  };
  if (is(conv.weight.sizes().slice(2), 1) && is(conv.padding, 0) && !is(conv.stride, 1)) {
    const Tensor there = x.slice(2, 0, c10::nullopt, conv.stride[0])
                             .slice(3, 0, c10::nullopt, conv.stride[1])
                             .contiguous(layout_of(x));
    const int64_t once[] = {1, 1};
    return at::conv2d(there, conv.weight, conv.bias, at::IntArrayRef(once), conv.padding,
                      at::IntArrayRef(once), conv.groups);
  }
  return at::conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation,
                    conv.groups);
}

bool takes_own_convolution(const Tensor& x, const ConvArguments& conv, string_view method) {
  if (method == "library") return false;
  const std::string refusal = conv_refusal(x, conv);
  if (method == "own") {
    TORCH_CHECK(refusal.empty(), "method 'own' of conv_norm_act does not support this call: ", refusal);
    return true;
  }
  TORCH_CHECK_VALUE(method == "auto", "method must be auto, own or library, got ", method);
  return refusal.empty() && conv_disadvantage(x, conv).empty();
}

Tensor activated(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kReLU: return at::relu(x);
    case Activation::kSiLU: return at::silu(x);
    default: return x;
  }
}

// fresh: nothing else reads x, so it may be overwritten.
Tensor norm_act(Tensor x, bool fresh, const Norm& norm, const MaybeTensor& residual,
                Activation activation) {
  if (!lies_by_pixel(x) && !x.is_contiguous()) x = x.contiguous(), fresh = true;
  if (!fits(residual, x.sizes(), layout_of(x))) {
    const Tensor y = norm_act(std::move(x), fresh, norm, c10::nullopt, Activation::kNone);
    return activated(y + *residual, activation);
  }
  const bool nothing = norm.groups == 0 && !norm.mean && !residual;
  if (nothing && activation == Activation::kNone) return fresh ? x : x.clone();
  const Tensor out = fresh ? x : at::empty_like(x);
  if (x.numel() > 0) {
    scale_and_add(x, norm.groups ? norm.of_groups(x) : norm.of_batch(x.size(1)), residual,
                  activation, out);
  }
  return out;
}

Tensor conv_norm_act(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                     int64_t groups, const MaybeTensor& mean, const MaybeTensor& variance,
                     const MaybeTensor& norm_weight, const MaybeTensor& norm_bias, double eps,
                     int64_t norm_groups, const MaybeTensor& residual, string_view activation,
                     string_view method) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.scalar_type() == at::kFloat && x.is_cpu(),
                    "x must be a float32 [B, C, H, W] on the CPU, got ", x.toString(), " ",
                    x.sizes());
  const Activation act = activation_of(activation);
  const Norm norm{mean, variance, norm_weight, norm_bias, eps, norm_groups};
  if (!weight) return norm_act(x, false, norm, residual, act);
  const ConvArguments conv{*weight, bias, stride, padding, dilation, groups};
  const std::vector<int64_t> size = conv_size(x, conv);
  if (!takes_own_convolution(x, conv, method)) {
    return norm_act(library_convolution(x, conv), true, norm, residual, act);
  }
  const at::MemoryFormat layout = layout_of(x);
  if (norm_groups == 0 && fits(residual, size, at::MemoryFormat::ChannelsLast)) {
    return convolve(x, conv, norm, residual, act).contiguous(layout);
  }
  const MaybeTensor none;
  const Norm of_batch{mean, variance, norm_weight, norm_bias, eps, 0};
  const Norm nothing{none, none, none, none, 0., 0};
  Tensor y = convolve(x, conv, norm_groups ? nothing : of_batch, none, Activation::kNone);
  return norm_act(std::move(y), true, norm_groups ? norm : nothing, residual, act)
      .contiguous(layout);
}

// Without this kernel autograd would silently treat the result as a constant.
Tensor without_gradients(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                         at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation, int64_t groups, const MaybeTensor& mean,
                         const MaybeTensor& variance, const MaybeTensor& norm_weight,
                         const MaybeTensor& norm_bias, double eps, int64_t norm_groups,
                         const MaybeTensor& residual, string_view activation,
                         string_view method) {
  const auto wanted = [](const MaybeTensor& t) { return t && t->requires_grad(); };
  TORCH_CHECK(!c10::GradMode::is_enabled() || !(x.requires_grad() || wanted(weight) ||
                                               wanted(bias) || wanted(norm_weight) ||
                                               wanted(norm_bias) || wanted(residual)),
              "the operator conv_norm_act has no derivative; mmcontext.ops.conv_norm_act takes "
              "standard operators where gradients are wanted");
  const at::AutoDispatchBelowADInplaceOrView below;
  return conv_norm_act(x, weight, bias, stride, padding, dilation, groups, mean, variance,
                       norm_weight, norm_bias, eps, norm_groups, residual, activation, method);
}

// Reasons against the C++ convolution: why it does not support the call, and why another is at
// least as fast.
std::vector<std::string> reasons(const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                                 at::IntArrayRef padding, at::IntArrayRef dilation,
                                 int64_t groups) {
  const MaybeTensor none;
  const ConvArguments conv{weight, none, stride, padding, dilation, groups};
  conv_size(x, conv);
  return {conv_refusal(x, conv), conv_disadvantage(x, conv)};
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("conv_refusals(Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, "
        "int groups) -> str[]");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CPU, m) { m.impl("conv_refusals", &mmcontext::reasons); }

TORCH_LIBRARY_IMPL(mmcontext, CPU, m) { m.impl("conv_norm_act", &mmcontext::conv_norm_act); }

TORCH_LIBRARY_IMPL(mmcontext, AutogradCPU, m) {
  m.impl("conv_norm_act", &mmcontext::without_gradients);
}
