// Group norm of contiguous maps on a GPU, with its derivatives: one launch forwards and two
// backwards (cuda/group_norm.cu). The reference is in Python (ops/group_norm).
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "cuda/group_norm.cuh"
#include "gpu.h"
#include "gpu_maps.h"
#include "local_aggregation.h"
#include "work.h"

namespace mmcontext {
namespace {

using OptionalTensor = c10::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kSwitch = "MMCONTEXT_GROUP_NORM";
constexpr int64_t kThreads = 512, kAddingThreads = 256, kAddedChannels = 32;
constexpr int64_t kMost = std::numeric_limits<int>::max();

enum class Pass { kResult, kGradient, kGradientsOfNorm };

struct Norm {
  Tensor weight, bias;                     // float [C] or undefined
  int64_t groups;
  double eps;
};

CudaLaunch launch_of(Pass pass, const Tensor& x, const GroupNormParameters& p) {
  const bool adds = pass == Pass::kGradientsOfNorm;
  const int64_t threads = adds ? kAddingThreads : kThreads;
  CudaLaunch launch;
  launch.source = "group_norm.cu";
  launch.entry = "group_norm";
  launch.defines = defines({{"PASS", static_cast<int64_t>(pass)},
                            {"STORAGE", adds ? 0 : static_cast<int64_t>(storage_of(x))},
                            {"WIDE", !adds && p.pixels * x.element_size() % 16 == 0},
                            {"THREADS", threads}});
  launch.block = static_cast<unsigned>(threads);
  launch.grid[0] = static_cast<unsigned>(adds ? ceil_div(p.channels, kAddedChannels)
                                              : static_cast<int64_t>(p.batch) * p.groups);
  launch.grid[1] = launch.grid[2] = 1;
  launch.shared_bytes = static_cast<unsigned>(2 * threads * sizeof(float));
  launch.parameters = bytes_of(p);
  return launch;
}

GroupNormParameters parameters_of(const Tensor& x, const Norm& norm) {
  GroupNormParameters p{};
  p.x = address_of(x);
  p.weight = address_of(norm.weight);
  p.bias = address_of(norm.bias);
  p.batch = static_cast<int>(x.size(0));
  p.groups = static_cast<int>(norm.groups);
  p.channels = static_cast<int>(x.size(1));
  p.pixels = static_cast<int>(x.size(2) * x.size(3));
  p.lanes = static_cast<int>(std::min<int64_t>(p.channels / p.groups, 32));
  p.eps = static_cast<float>(norm.eps);
  return p;
}

Tensor run_forward(const Tensor& x, const Norm& norm, const Tensor& saved) {
  const Tensor y = at::empty_like(x);
  GroupNormParameters p = parameters_of(x, norm);
  p.y = address_of(y);
  p.saved = address_of(saved);
  launch_on_gpu(gpu_index(x), {launch_of(Pass::kResult, x, p)});
  return y;
}

struct Gradients { Tensor x, weight, bias; };

Gradients run_backward(const Tensor& grad, const Tensor& x, const Tensor& saved,
                       const Norm& norm) {
  const Tensor sums = empty_floats({2, x.size(0), x.size(1)}, x), both = empty_floats({2, x.size(1)}, x);
  const Gradients gradients{at::empty_like(x), both[0], both[1]};
  GroupNormParameters p = parameters_of(x, norm);
  p.saved = address_of(saved);
  p.grad = address_of(grad);
  p.grad_x = address_of(gradients.x);
  p.sums = address_of(sums);
  p.grad_weight = address_of(gradients.weight);
  p.grad_bias = address_of(gradients.bias);
  launch_on_gpu(gpu_index(x), {launch_of(Pass::kGradient, x, p),
                               launch_of(Pass::kGradientsOfNorm, x, p)});
  return gradients;
}

// The same by differentiable functions, for a gradient of gradients.
Gradients compose_backward(const Tensor& grad, const Tensor& x, const Norm& norm) {
  const std::vector<int64_t> group{2, 3}, shape{x.size(0), norm.groups, x.size(1) / norm.groups,
                                               x.size(2) * x.size(3)};
  const Tensor wide = x.to(at::kFloat).reshape(shape), mean = wide.mean(group, true);
  const Tensor inverse = ((wide - mean).square().mean(group, true) + norm.eps).rsqrt();
  const Tensor normed = (wide - mean) * inverse, g = grad.to(at::kFloat).reshape(shape);
  const Tensor weighed = norm.weight.defined()
                             ? g * norm.weight.view({1, shape[1], shape[2], 1}) : g;
  const Tensor of_x = inverse * (weighed - weighed.mean(group, true) -
                                 normed * (weighed * normed).mean(group, true));
  const std::vector<int64_t> others{0, 3};
  return {of_x.reshape(x.sizes()).to(x.scalar_type()), (g * normed).sum(others).flatten(),
          g.sum(others).flatten()};
}

struct Differentiable : torch::autograd::Function<Differentiable> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& weight,
                        const OptionalTensor& bias, int64_t groups, double eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor saved = empty_floats({2, x.size(0) * groups}, x);
    ctx->save_for_backward({x, given(weight), given(bias), saved});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    return run_forward(x, {given(weight), given(bias), groups, eps}, saved);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const variable_list kept = ctx->get_saved_variables();
    const Tensor& x = kept[0];
    const Norm norm{kept[1], kept[2], ctx->saved_data["groups"].toInt(),
                    ctx->saved_data["eps"].toDouble()};
    const Gradients of =
        at::GradMode::is_enabled()
            ? compose_backward(grads[0], x, norm)
            : run_backward(grads[0].to(x.scalar_type()).contiguous(), x, kept[3], norm);
    return {of.x, norm.weight.defined() ? of.weight : Tensor(),
            norm.bias.defined() ? of.bias : Tensor(), Tensor(), Tensor()};
  }
};

// Why the kernels do not support the call; empty if they do.
std::string refusal(const Tensor& x, int64_t groups, const OptionalTensor& weight,
                    const OptionalTensor& bias, bool on_host) {
  const std::string reason = tensor_refusal(x, on_host);
  if (!reason.empty()) return reason;
  if (x.numel() == 0 || !x.is_contiguous()) return "they support contiguous maps only";
  if (reinterpret_cast<uintptr_t>(x.data_ptr()) % 16) return "the map is not aligned to 16 bytes";
  if (groups < 1 || x.size(1) % groups) return "the groups do not divide the channels";
  if (x.size(1) / groups * x.size(2) * x.size(3) > kMost / 2 || x.size(0) * groups > kMost) {
    return "the map is too large";
  }
  for (const OptionalTensor& vector : {weight, bias}) {
    if (vector && (vector->scalar_type() != at::kFloat || !vector->is_contiguous() ||
                   vector->numel() != x.size(1) || vector->device() != x.device())) {
      return std::string("the weight and bias must be float32 [C] on the device of x, one is ") +
             c10::toString(vector->scalar_type());
    }
  }
  return "";
}

// Nothing if the kernels do not support the call or the environment turns them off.
OptionalTensor group_norm(const Tensor& x, int64_t groups, const OptionalTensor& weight,
                          const OptionalTensor& bias, double eps, c10::string_view method) {
  const std::string chosen = chosen_method(kSwitch, method);
  if (chosen == "torch" || !refusal(x, groups, weight, bias, chosen == "null").empty()) return {};
  const Tensor w = given(weight), b = given(bias);
  if (wants_gradient({&x, &w, &b})) return Differentiable::apply(x, weight, bias, groups, eps);
  at::AutoDispatchBelowADInplaceOrView below;
  return run_forward(x, {w, b, groups, eps}, Tensor());
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("group_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, str method) "
        "-> Tensor?");
  m.def("group_norm_refusal(Tensor x, int groups, Tensor? weight, Tensor? bias, bool on_host) "
        "-> str");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("group_norm", &mmcontext::group_norm);
  m.impl("group_norm_refusal", &mmcontext::refusal);
}
