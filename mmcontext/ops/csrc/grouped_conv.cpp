// A convolution of narrow groups on a GPU's tensor cores: the operator, its derivative, autocast.
// Schema, shape function and the choice of it stand in grouped_conv.py.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#include <torch/version.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "gpu.h"
#include "grouped_plan.h"

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

// Everything about a call but its tensors. 'null' runs all but the launches, on the CPU.
struct Call {
  int64_t stride, groups;
  bool on_host;
};

int64_t kernel_of(const Tensor& w) { return w.size(2); }

bool served(const Tensor& x, bool on_host) {
  return on_host ? x.is_cpu() : x.is_cuda() && gpu_refusal(x.get_device()).empty();
}

const GroupedPlan& plan_of(const GroupedProblem& p, int64_t device) {
  using Key = std::array<int64_t, 12>;
  static std::shared_mutex mutex;
  static std::map<Key, std::unique_ptr<GroupedPlan>> plans;
  const Key key{static_cast<int>(p.task), p.storage, p.in, p.out, p.groups, p.kernel, p.stride,
                p.batch, p.rows, p.cols, p.bias, device};
  {
    std::shared_lock<std::shared_mutex> lock(mutex);
    const auto found = plans.find(key);
    if (found != plans.end()) return *found->second;
  }
  const std::string reason = grouped_refusal(p.in, p.out, p.groups, p.kernel, p.stride);
  TORCH_CHECK_VALUE(reason.empty(), "method 'direct' of grouped_conv2d cannot serve: ", reason);
  auto made = std::make_unique<GroupedPlan>(plan_grouped(p, gpu_limits(device)));
  TORCH_CHECK(made->parts > 0, "the GPU has too little shared memory for method 'direct' of "
              "grouped_conv2d with ", made->main.defines);
  std::unique_lock<std::shared_mutex> lock(mutex);
  return *plans.emplace(key, std::move(made)).first->second;
}

GroupedProblem problem_of(GroupedTask task, const Tensor& w, at::IntArrayRef x, const Call& call,
                          bool bias) {
  const auto narrow = [](int64_t number) { return static_cast<int>(number); };
  return {task, w.scalar_type() == at::kBFloat16 ? 2 : 3, narrow(w.size(1)),
          narrow(w.size(0) / call.groups), narrow(call.groups), narrow(kernel_of(w)),
          narrow(call.stride), narrow(x[0]), narrow(x[2]), narrow(x[3]), bias};
}

// A map that is read and written by 16 bytes of neighbouring channels: a channels-last one, or
// channels of a larger one.
Tensor readable(const Tensor& map) {
  bool fits = map.stride(1) == 1 && reinterpret_cast<uintptr_t>(map.data_ptr()) % 16 == 0;
  for (const int dim : {0, 2, 3}) fits = fits && (map.size(dim) == 1 || map.stride(dim) % 8 == 0);
  if (fits) return map;
  const Tensor copy = map.contiguous(at::MemoryFormat::ChannelsLast);
  // A single channel or pixel counts as contiguous in any layout.
  return copy.stride(1) == 1 ? copy : copy.clone(at::MemoryFormat::ChannelsLast);
}

PixelMap pixels(const Tensor& map) {
  const auto stride = [&](int dim) { return map.size(dim) == 1 ? 0 : map.stride(dim); };
  return {reinterpret_cast<uint64_t>(map.data_ptr()), stride(0), static_cast<int>(stride(2)),
          static_cast<int>(stride(3)), static_cast<int>(map.size(2)),
          static_cast<int>(map.size(3))};
}

template <class Parameters> void set_weight_strides(const Tensor& w, Parameters& q) {
  q.weight_out = static_cast<int>(w.stride(0));
  q.weight_in = static_cast<int>(w.stride(1));
  q.weight_row = static_cast<int>(w.stride(2));
  q.weight_col = static_cast<int>(w.stride(3));
}

template <class Parameters> CudaLaunch filled(const CudaLaunch& launch, const Parameters& q) {
  CudaLaunch copy = launch;
  copy.parameters = bytes_of(q);
  return copy;
}

void run_map(GroupedTask task, const Tensor& source, const Tensor& w, const OptionalTensor& bias,
             const Tensor& target, const Call& call) {
  const int64_t device = gpu_index(source);
  const Tensor& x = task == GroupedTask::kForward ? source : target;
  const bool with_bias = bias.has_value() && bias->defined();
  const GroupedPlan& plan = plan_of(problem_of(task, w, x.sizes(), call, with_bias), device);
  const Tensor from = readable(source), added = with_bias ? bias->contiguous() : Tensor();
  GroupedParameters q = plan.parameters;
  q.source = pixels(from);
  q.target = pixels(target);
  q.weight = reinterpret_cast<uint64_t>(w.data_ptr());
  q.bias = with_bias ? reinterpret_cast<uint64_t>(added.data_ptr()) : 0;
  set_weight_strides(w, q);
  launch_on_gpu(device, {filled(plan.main, q)});
}

Tensor empty_map(const Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

int64_t out_size(int64_t size, int64_t stride) { return (size - 1) / stride + 1; }

Tensor run_forward(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                   const Call& call) {
  Tensor y = empty_map(x, {x.size(0), w.size(0), out_size(x.size(2), call.stride),
                           out_size(x.size(3), call.stride)});
  if (y.numel()) run_map(GroupedTask::kForward, x, w, bias, y, call);
  return y;
}

Tensor run_grad_input(const Tensor& grad, const Tensor& x, const Tensor& w, const Call& call) {
  Tensor result = empty_map(grad, x.sizes());
  if (result.numel()) run_map(GroupedTask::kGradInput, grad, w, {}, result, call);
  return result;
}

Tensor run_grad_weight(const Tensor& grad, const Tensor& x, const Tensor& w, const Call& call) {
  if (x.numel() == 0) return at::zeros_like(w);
  const int64_t device = gpu_index(x);
  const GroupedPlan& plan =
      plan_of(problem_of(GroupedTask::kGradWeight, w, x.sizes(), call, false), device);
  const Tensor from = readable(x), other = readable(grad);
  Tensor result = at::empty_like(w);
  const Tensor partial = at::empty({plan.parts, w.numel()}, w.options().dtype(at::kFloat));
  GroupedParameters q = plan.parameters;
  q.source = pixels(from);
  q.target = pixels(other);
  q.partial = reinterpret_cast<uint64_t>(partial.data_ptr());
  GroupedSumParameters sum{};
  sum.partial = q.partial;
  sum.target = reinterpret_cast<uint64_t>(result.data_ptr());
  set_weight_strides(result, sum);
  sum.parts = plan.parts;
  sum.count = static_cast<int>(w.numel());
  launch_on_gpu(device, {filled(plan.main, q), filled(plan.sum, sum)});
  return result;
}

void expect(GroupedTask task, const Tensor& x, const Tensor& w, const Call& call) {
  const int64_t device = gpu_index(x);
  const GroupedPlan& plan = plan_of(problem_of(task, w, x.sizes(), call, false), device);
  expect_kernel(device, plan.main);
  if (task == GroupedTask::kGradWeight) expect_kernel(device, plan.sum);
}

// Has the kernels of a new forward pass' gradients compiled behind it.
void expect_gradients(const Tensor& x, const Tensor& w, bool bias, const Call& call) {
  if (x.numel() == 0) return;
  const GroupedPlan& plan =
      plan_of(problem_of(GroupedTask::kForward, w, x.sizes(), call, bias), gpu_index(x));
  if (is_built(gpu_index(x), plan.main)) return;
  for (const auto task : {GroupedTask::kGradInput, GroupedTask::kGradWeight}) {
    expect(task, x, w, call);
  }
}

// Whether the kernels take an operand; else it is served by standard functions.
bool is_ours(const Tensor& x, bool on_host) {
  return (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf) &&
         served(x, on_host);
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
  const Call call{stride, groups, method == "null"};
  if (!is_ours(x, call.on_host)) {
    const int64_t pad = kernel_of(w) / 2;
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
    if (is_ours(x, on_host)) expect_gradients(x, w, with_bias, {stride, groups, on_host});
    return forward_op().call(x, w, bias, stride, groups, on_host ? "null" : "");
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &grad = grads[0];
    const Call call{ctx->saved_data["stride"].toInt(), ctx->saved_data["groups"].toInt(),
                    ctx->saved_data["on_host"].toBool()};
    const bool want_bias = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
    const std::array<bool, 3> want{ctx->needs_input_grad(0), ctx->needs_input_grad(1), want_bias};
    variable_list result(6);
    if (at::GradMode::is_enabled() || !is_ours(x, call.on_host)) {
      // Standard functions, which have derivatives themselves.
      const int64_t pad = kernel_of(w) / 2;
      const int64_t stride[] = {call.stride, call.stride}, padding[] = {pad, pad};
      const int64_t one[] = {1, 1}, none[] = {0, 0}, outs[] = {w.size(0)};
      std::tie(result[0], result[1], result[2]) = at::convolution_backward(
          grad, x, w, at::IntArrayRef(outs), stride, padding, one, false, none, call.groups,
          want);
      return result;
    }
    if (want[0]) result[0] = run_grad_input(grad, x, w, call);
    if (want[1]) result[1] = run_grad_weight(grad, x, w, call);
    if (want[2]) result[2] = grad.sum({0, 2, 3});
    return result;
  }
};

Tensor forward_autograd(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        int64_t stride, int64_t groups, string_view method) {
  const bool wanted = at::GradMode::is_enabled() &&
                      (x.requires_grad() || w.requires_grad() ||
                       (bias.has_value() && bias->defined() && bias->requires_grad()));
  if (!wanted) {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_op().call(x, w, bias, stride, groups, method);
  }
  return Differentiable::apply(x, w, bias, stride, groups, method == "null");
}

// As conv2d's: weights that are cast are kept until autocast ends.
Tensor forward_autocast(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                        int64_t stride, int64_t groups, string_view method) {
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  const auto device = x.device().type();
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 4
  const auto type = at::autocast::get_autocast_dtype(device);
#else
  const auto type = device == c10::DeviceType::CUDA ? at::autocast::get_autocast_gpu_dtype()
                                                    : at::autocast::get_autocast_cpu_dtype();
#endif
  const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(type, t, device); };
  const OptionalTensor added =
      bias.has_value() && bias->defined() ? OptionalTensor(cast(*bias)) : OptionalTensor();
  return forward_op().call(cast(x), cast(w), added, stride, groups, method);
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  // In and out channels of a group, groups, kernel, stride.
  m.def("grouped_conv_refusal(int input, int output, int groups, int kernel, int stride) -> str",
        [](int64_t in, int64_t out, int64_t groups, int64_t kernel, int64_t stride) {
          return mmcontext::grouped_refusal(static_cast<int>(in), static_cast<int>(out),
                                            static_cast<int>(groups), static_cast<int>(kernel),
                                            static_cast<int>(stride));
        });
  // Estimated microseconds of the forward pass and both gradients on a GPU (-1: an H100).
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
