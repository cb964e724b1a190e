// Convolution with narrow groups on tensor cores: the operator, its derivative, autocast. The
// schema, the shape function and the choice of this operator are in grouped_conv.py.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "autocast.h"
#include "gpu.h"
#include "gpu_maps.h"
#include "grouped_conv.h"

namespace mmcontext {
namespace {

using at::Tensor;
using c10::string_view;
using OptionalTensor = c10::optional<Tensor>;
using Forward = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t, int64_t,
                       string_view);

const c10::TypedOperatorHandle<Forward>& forward_op() {
  static const auto op = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext::grouped_conv_direct", "").typed<Forward>();
  return op;
}

Tensor run_forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                   const GroupedCall& call) {
  Tensor y = empty_pixels({x.size(0), w.size(0), (x.size(2) - 1) / call.stride + 1,
                           (x.size(3) - 1) / call.stride + 1}, x);
  if (y.numel()) run_grouped_map(GroupedTask::kForward, x, w, bias, y, call);
  return y;
}

Tensor run_grad_input(const Tensor& grad, const Tensor& x, const Tensor& w,
                      const GroupedCall& call) {
  Tensor result = empty_pixels(x.sizes(), grad);
  if (result.numel()) run_grouped_map(GroupedTask::kGradInput, grad, w, {}, result, call);
  return result;
}

void check(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t stride,
           int64_t groups) {
  TORCH_CHECK_VALUE(x.dim() == 4 && w.dim() == 4 && groups >= 1 &&
                        x.size(1) == w.size(1) * groups && w.size(0) % groups == 0 &&
                        w.size(2) == w.size(3),
                    "x must be [B, C, H, W] and weight [Co, C / groups, K, K], got ", x.sizes(),
                    ", ", w.sizes(), " and ", groups, " groups");
  TORCH_CHECK_VALUE(x.scalar_type() == w.scalar_type() && x.device() == w.device(),
                    "x and weight must share dtype and device, they are ", x.scalar_type(), " on ",
                    x.device(), " and ", w.scalar_type(), " on ", w.device());
  if (bias.has_value() && bias->defined()) {
    TORCH_CHECK_VALUE(bias->sizes() == at::IntArrayRef({w.size(0)}) &&
                          bias->scalar_type() == x.scalar_type() && bias->device() == x.device(),
                      "bias must be [", w.size(0), "] in the dtype and on the device of x, got ",
                      bias->sizes(), " ", bias->scalar_type(), " on ", bias->device());
  }
}

Tensor forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias, int64_t stride,
               int64_t groups, string_view method) {
  check(x, w, bias, stride, groups);
  const GroupedCall call{stride, groups, method == "null"};
  if (!takes_grouped(x, call.on_host)) {
    const int64_t pad = w.size(2) / 2;
    return at::conv2d(x, w, bias, {stride, stride}, {pad, pad}, {1, 1}, groups);
  }
  return run_forward(x, w, bias, call);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Differentiable : torch::autograd::Function<Differentiable> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w,
                        const OptionalTensor& bias, int64_t stride, int64_t groups,
                        bool on_host) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, w});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["on_host"] = on_host;
    const bool with_bias = bias.has_value() && bias->defined();
    ctx->saved_data["bias"] = with_bias;
    if (takes_grouped(x, on_host)) {
      expect_grouped_gradients(x, w, with_bias, {stride, groups, on_host});
    }
    return forward_op().call(x, w, bias, stride, groups, on_host ? "null" : "");
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &grad = grads[0];
    const GroupedCall call{ctx->saved_data["stride"].toInt(), ctx->saved_data["groups"].toInt(),
                    ctx->saved_data["on_host"].toBool()};
    const bool want_bias = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
    const std::array<bool, 3> want{ctx->needs_input_grad(0), ctx->needs_input_grad(1), want_bias};
    variable_list result(6);
    if (at::GradMode::is_enabled() || !takes_grouped(x, call.on_host)) {
      // For a gradient of gradients: standard, differentiable functions.
      const int64_t pad = w.size(2) / 2;
      const int64_t stride[] = {call.stride, call.stride}, padding[] = {pad, pad};
      const int64_t one[] = {1, 1}, none[] = {0, 0}, outs[] = {w.size(0)};
      std::tie(result[0], result[1], result[2]) = at::convolution_backward(
          grad, x, w, at::IntArrayRef(outs), stride, padding, one, false, none, call.groups,
          want);
      return result;
    }
    if (want[0]) result[0] = run_grad_input(grad, x, w, call);
    if (want[1]) result[1] = grouped_grad_weight(grad, x, w, call);
    if (want[2]) result[2] = grad.sum({0, 2, 3});
    return result;
  }
};

Tensor forward_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        int64_t stride, int64_t groups, string_view method) {
  const Tensor added = given(bias);
  if (!wants_gradient({&x, &w, &added})) {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_op().call(x, w, bias, stride, groups, method);
  }
  return Differentiable::apply(x, w, bias, stride, groups, method == "null");
}

Tensor forward_autocast(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        int64_t stride, int64_t groups, string_view method) {
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  const auto cast = [](const Tensor& t) { return autocast_kept(t); };
  const OptionalTensor added =
      bias.has_value() && bias->defined() ? OptionalTensor(cast(*bias)) : OptionalTensor();
  return forward_op().call(cast(x), cast(w), added, stride, groups, method);
}

}  // namespace

Tensor autocast_kept(const Tensor& t) {
  const auto device = t.device().type();
  return at::autocast::cached_cast(autocast_type(device), t, device);
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  // input and output: channels per group.
  m.def("grouped_conv_refusal(int input, int output, int groups, int kernel, int stride) -> str",
        [](int64_t in, int64_t out, int64_t groups, int64_t kernel, int64_t stride) {
          return mmcontext::grouped_refusal(static_cast<int>(in), static_cast<int>(out),
                                            static_cast<int>(groups), static_cast<int>(kernel),
                                            static_cast<int>(stride));
        });
  // Estimated microseconds of the forward pass and each gradient on a GPU (-1: an H100).
  m.def("grouped_conv_microseconds(int input, int output, int groups, int kernel, int stride, "
        "int batch, int rows, int cols, int device) -> float[]",
        [](int64_t in, int64_t out, int64_t groups, int64_t kernel, int64_t stride,
           int64_t batch, int64_t rows, int64_t cols, int64_t device) {
          std::vector<double> times;
          for (const auto task : {mmcontext::GroupedTask::kForward,
                                  mmcontext::GroupedTask::kGradInput,
                                  mmcontext::GroupedTask::kGradWeight}) {
            times.push_back(mmcontext::grouped_microseconds(
                {task, 2, static_cast<int>(in), static_cast<int>(out), static_cast<int>(groups),
                 static_cast<int>(kernel), static_cast<int>(stride), static_cast<int>(batch),
                 static_cast<int>(rows), static_cast<int>(cols), 0},
                mmcontext::gpu_limits(device)));
          }
          return times;
        });
}

TORCH_LIBRARY_IMPL(mmcontext, CompositeExplicitAutograd, m) {
  m.impl("grouped_conv_direct", &mmcontext::forward);
}

TORCH_LIBRARY_IMPL(mmcontext, Autograd, m) {
  m.impl("grouped_conv_direct", &mmcontext::forward_autograd);
}

TORCH_LIBRARY_IMPL(mmcontext, AutocastCPU, m) {
  m.impl("grouped_conv_direct", &mmcontext::forward_autocast);
}

TORCH_LIBRARY_IMPL(mmcontext, AutocastCUDA, m) {
  m.impl("grouped_conv_direct", &mmcontext::forward_autocast);
}
