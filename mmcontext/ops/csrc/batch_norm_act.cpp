// Batch norm, residual and activation of channels-last maps on a GPU, with their derivatives:
// two or three launches per pass (cuda/batch_norm.cu). The schema, the refusals and the reference
// are in Python (ops/batch_norm_act).
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "batch_norm_act.h"
#include "cuda/batch_norm.cuh"
#include "gpu.h"
#include "gpu_maps.h"
#include "layout.h"
#include "local_aggregation.h"
#include "work.h"

namespace mmcontext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum class Pass { kSums, kStatistics, kResult, kGradientSums, kGradientsOfNorm, kGradient };

// Compile options other than the pass, named as in cuda/batch_norm.cu.
struct Form {
  int storage, activation;
  bool residual, batch, sums;
};

constexpr int64_t kThreads = 256, kAddingThreads = 1024, kAddedChannels = 32;

int activation_code(c10::string_view name) {
  if (name == "none") return 0;
  if (name == "relu") return 1;
  TORCH_CHECK_VALUE(name == "silu", "activation must be one of none, relu, silu, got ", name);
  return 2;
}

bool adds_partials(Pass pass) {
  return pass == Pass::kStatistics || pass == Pass::kGradientsOfNorm;
}

// How a map is divided among blocks.
struct Division {
  int64_t vectors, lanes, tiles, blocks;   // blocks of pixels
};

Division divide(const Tensor& x, const CudaDevice& device, int64_t blocks_per_multiprocessor) {
  const int64_t channels = x.size(1), pixels = x.numel() / channels;
  const int64_t vectors = channels * x.element_size() / 16;
  const int64_t lanes = std::min<int64_t>(vectors, 32), tiles = ceil_div(vectors, lanes);
  const int64_t rows = kThreads / lanes;
  const int64_t wanted = device.multiprocessors * blocks_per_multiprocessor / tiles;
  return {vectors, lanes, tiles,
          std::max<int64_t>(1, std::min(wanted, ceil_div(pixels, 4 * rows)))};
}

CudaLaunch launch_of(Pass pass, const Form& form, const BatchNormParameters& parameters,
                     const Division& division) {
  const bool adds = adds_partials(pass);
  // The derivative of SiLU needs more registers.
  const bool roomy = form.activation == 2 && pass >= Pass::kGradientSums;
  const int64_t threads = adds ? kAddingThreads : kThreads;
  CudaLaunch launch;
  launch.source = "batch_norm.cu";
  launch.entry = "batch_norm";
  launch.defines = defines({{"PASS", static_cast<int64_t>(pass)}, {"STORAGE", form.storage},
                            {"ACTIVATION", form.activation}, {"RESIDUAL", form.residual},
                            {"BATCH", form.batch}, {"SUMS", form.sums}, {"THREADS", threads},
                            {"BLOCKS", adds ? 1 : roomy ? 2 : 3}});
  launch.block = static_cast<unsigned>(threads);
  launch.grid[0] = static_cast<unsigned>(adds ? ceil_div(parameters.channels, kAddedChannels)
                                              : division.tiles);
  launch.grid[1] = static_cast<unsigned>(adds ? 1 : division.blocks);
  launch.grid[2] = 1;
  const int64_t sums = 2 * 16 / (form.storage == 0 ? 4 : 2);   // per thread, in floats
  launch.shared_bytes = static_cast<unsigned>(
      adds ? 2 * threads * sizeof(double)
           : pass == Pass::kSums || pass == Pass::kGradientSums ? threads * sums * sizeof(float)
                                                                : 0);
  launch.parameters = bytes_of(parameters);
  return launch;
}

// The norm's tensors, each float32 [C] or undefined. offset: is added to x before the norm, which
// with batch statistics changes nothing but the running mean.
struct Norm {
  Tensor weight, bias, mean, variance, offset;
  double eps;
};

BatchNormParameters parameters_of(const Tensor& x, const Norm& norm) {
  BatchNormParameters p{};
  p.x = address_of(x);
  p.weight = address_of(norm.weight);
  p.bias = address_of(norm.bias);
  p.running_mean = address_of(norm.mean);
  p.running_variance = address_of(norm.variance);
  p.offset = address_of(norm.offset);
  p.channels = static_cast<int>(x.size(1));
  p.pixels = x.numel() / x.size(1);
  p.eps = static_cast<float>(norm.eps);
  return p;
}

// Blocks per multiprocessor in passes that write partial sums, and in those that write maps.
constexpr int64_t kSummingBlocks = 3, kWritingBlocks = 12;

// Sets up the workspace for the partial sums of a pass.
Tensor sum_in(const Tensor& x, const Division& division, BatchNormParameters& p) {
  const Tensor partial = empty_floats({division.blocks, 2, x.size(1)}, x);
  p.partial = address_of(partial);
  p.partials = static_cast<int>(division.blocks);
  p.lanes = static_cast<int>(division.lanes);
  return partial;
}

Tensor vectors_like(const Tensor& x, int64_t count) {
  return empty_floats({count, x.size(1)}, x);
}

// The result and, with batch statistics, float [4, C] saved for the backward pass.
std::tuple<Tensor, Tensor> run_forward(const Tensor& x, const Tensor& residual, const Norm& norm,
                                       const Tensor& batches, bool batch, double momentum,
                                       int activation) {
  const int64_t device = gpu_index(x);
  const CudaDevice& limits = gpu_limits(device);
  const Form form{static_cast<int>(storage_of(x)), activation, residual.defined(), batch, false};
  const Tensor y = at::empty_like(x);
  BatchNormParameters p = parameters_of(x, norm);
  p.momentum = static_cast<float>(momentum);
  p.batches = address_of(batches);
  p.residual = address_of(residual);
  p.y = address_of(y);
  std::vector<CudaLaunch> launches;
  Tensor saved, partial;
  if (batch) {
    saved = vectors_like(x, 4);
    p.saved = address_of(saved);
    const Division division = divide(x, limits, kSummingBlocks);
    partial = sum_in(x, division, p);
    const Form plain{form.storage, 0, false, true, false};
    launches.push_back(launch_of(Pass::kSums, plain, p, division));
    launches.push_back(launch_of(Pass::kStatistics, plain, p, division));
  }
  const Division division = divide(x, limits, kWritingBlocks);
  p.lanes = static_cast<int>(division.lanes);
  launches.push_back(launch_of(Pass::kResult, form, p, division));
  launch_on_gpu(device, launches);
  return {y, saved};
}

struct Gradients { Tensor x, residual, weight, bias, offset; };

// `y` is read if a residual was added before an activation, `saved` with batch statistics.
Gradients run_backward(const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& saved,
                       const Norm& norm, bool residual, int activation, bool want_x,
                       bool want_norm) {
  const int64_t device = gpu_index(x);
  const CudaDevice& limits = gpu_limits(device);
  const bool batch = saved.defined();
  const Form form{static_cast<int>(storage_of(x)), activation, residual, batch,
                  batch || want_norm};
  Gradients gradients;
  // Without sums the last pass also writes the gradient of the residual.
  const bool last = want_x || !form.sums;
  if (last) gradients.x = at::empty_like(x);
  BatchNormParameters p = parameters_of(x, norm);
  p.saved = address_of(saved);
  p.y = address_of(y);
  p.grad = address_of(grad);
  p.grad_x = address_of(gradients.x);
  if (residual) gradients.residual = activation ? at::empty_like(x) : grad;
  p.grad_residual = address_of(gradients.residual);
  std::vector<CudaLaunch> launches;
  Tensor partial, coefficients;
  if (form.sums) {
    const bool offset = norm.offset.defined();
    if (want_norm || offset) {
      const Tensor all = vectors_like(x, 2 + offset);
      gradients.weight = all[0];
      gradients.bias = all[1];
      if (offset) gradients.offset = all[2];
    }
    p.grad_weight = address_of(gradients.weight);
    p.grad_bias = address_of(gradients.bias);
    p.grad_offset = address_of(gradients.offset);
    if (batch) coefficients = vectors_like(x, 3);
    p.coefficients = address_of(coefficients);
    const Division division = divide(x, limits, kSummingBlocks);
    partial = sum_in(x, division, p);
    launches.push_back(launch_of(Pass::kGradientSums, form, p, division));
    const Form plain{form.storage, 0, false, batch, true};
    launches.push_back(launch_of(Pass::kGradientsOfNorm, plain, p, division));
  }
  const Division division = divide(x, limits, kWritingBlocks);
  p.lanes = static_cast<int>(division.lanes);
  if (last) launches.push_back(launch_of(Pass::kGradient, form, p, division));
  launch_on_gpu(device, launches);
  return gradients;
}

// The same by differentiable functions, for a gradient of gradients.
Gradients compose_backward(const Tensor& grad, const Tensor& x, const Tensor& y, bool batch,
                           const Norm& norm, bool residual, int activation) {
  const auto vector = [&](const Tensor& t) { return t.view({1, -1, 1, 1}); };
  const Tensor wide = x.to(at::kFloat);
  const std::vector<int64_t> others{0, 2, 3};
  const Tensor mean = batch ? wide.mean(others, true) : vector(norm.mean);
  const Tensor variance = batch ? (wide - mean).square().mean(others, true)
                                : vector(norm.variance);
  const Tensor inverse = (variance + norm.eps).rsqrt(), normed = (wide - mean) * inverse;
  const Tensor scale = norm.weight.defined() ? vector(norm.weight) * inverse : inverse;
  Tensor g = grad.to(at::kFloat);
  if (activation) {
    Tensor z = norm.weight.defined() ? normed * vector(norm.weight) : normed;
    if (norm.bias.defined()) z = z + vector(norm.bias);
    if (activation == 2) {
      const Tensor open = z.sigmoid();
      g = g * open * (1 + z * (1 - open));
    } else {
      g = g * ((residual ? y.to(at::kFloat) : z) > 0);
    }
  }
  Gradients gradients;
  gradients.bias = g.sum(others);
  gradients.weight = (g * normed).sum(others);
  Tensor of_x = g;
  if (batch) of_x = g - g.mean(others, true) - normed * (g * normed).mean(others, true);
  gradients.x = (scale * of_x).to(x.scalar_type());
  if (residual) gradients.residual = g.to(x.scalar_type());
  if (norm.offset.defined()) gradients.offset = at::zeros_like(norm.offset);
  return gradients;
}

struct Differentiable : torch::autograd::Function<Differentiable> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& added,
                        const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& mean, const OptionalTensor& variance,
                        const OptionalTensor& batches, const OptionalTensor& offset, bool batch,
                        double momentum, double eps, int64_t activation) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor residual = given(added);
    const Norm norm{given(weight), given(bias), given(mean), given(variance), given(offset), eps};
    auto [y, saved] = run_forward(x, residual, norm, given(batches), batch, momentum,
                                  static_cast<int>(activation));
    const bool with_y = residual.defined() && activation != 0;
    // In training the running statistics have changed by the time of the backward pass.
    ctx->save_for_backward({x, with_y ? y : Tensor(), saved, norm.weight, norm.bias,
                            batch ? Tensor() : norm.mean, batch ? Tensor() : norm.variance,
                            norm.offset});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["residual"] = residual.defined();
    ctx->saved_data["batch"] = batch;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list kept = ctx->get_saved_variables();
    const Norm norm{kept[3], kept[4], kept[5], kept[6], kept[7],
                    ctx->saved_data["eps"].toDouble()};
    const bool residual = ctx->saved_data["residual"].toBool();
    const int activation = static_cast<int>(ctx->saved_data["activation"].toInt());
    // needs_input_grad counts only the tensors that were given.
    const size_t first = residual ? 2 : 1, given = norm.weight.defined() + norm.bias.defined();
    const bool want_x = ctx->needs_input_grad(0);
    const bool want_norm = (given > 0 && ctx->needs_input_grad(first)) ||
                           (given > 1 && ctx->needs_input_grad(first + 1));
    Gradients of;
    if (at::GradMode::is_enabled()) {
      of = compose_backward(grads[0], kept[0], kept[1], ctx->saved_data["batch"].toBool(), norm,
                            residual, activation);
    } else {
      of = run_backward(dense_gradient(grads[0], kept[0]), kept[0], kept[1], kept[2], norm,
                        residual, activation, want_x, want_norm);
    }
    return {of.x, of.residual, norm.weight.defined() ? of.weight : Tensor(),
            norm.bias.defined() ? of.bias : Tensor(), Tensor(), Tensor(), Tensor(), of.offset,
            Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Why the kernels do not support the call; empty if they do.
std::string refusal(const Tensor& x, const Tensor& residual,
                    std::initializer_list<const Tensor*> vectors, bool batch, int activation,
                    bool on_host) {
  const std::string of_x = map_refusal(x, on_host);
  if (!of_x.empty()) return of_x;
  if (batch && x.numel() == x.size(1)) return "one value per channel has no statistics";
  if (residual.defined() &&
      (activation == 2 || residual.sizes() != x.sizes() || residual.device() != x.device() ||
       residual.scalar_type() != x.scalar_type() ||
       !lies_by_pixel(residual))) {
    return "the residual differs from x in shape, dtype, device or layout, or a SiLU follows";
  }
  for (const Tensor* vector : vectors) {
    if (vector->defined() &&
        (vector->scalar_type() != at::kFloat || vector->dim() != 1 || !vector->is_contiguous() ||
         vector->size(0) != x.size(1) || vector->device() != x.device())) {
      return std::string("the norm's tensors must be float32 [C] on the device of x, one is ") +
             c10::toString(vector->scalar_type());
    }
  }
  return "";
}

std::string explain(const Tensor& x, const OptionalTensor& residual, const OptionalTensor& weight,
                    const OptionalTensor& bias, const OptionalTensor& mean,
                    const OptionalTensor& variance, bool batch, c10::string_view activation,
                    bool on_host) {
  const Tensor w = given(weight), b = given(bias), m = given(mean), v = given(variance);
  return refusal(x, given(residual), {&w, &b, &m, &v}, batch, activation_code(activation),
                 on_host);
}

}  // namespace

OptionalTensor batch_norm_act(const Tensor& x, const OptionalTensor& residual,
                              const OptionalTensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& mean, const OptionalTensor& variance,
                              const OptionalTensor& batches, const OptionalTensor& offset,
                              bool batch, double momentum, double eps,
                              c10::string_view activation, c10::string_view method) {
  const std::string chosen = chosen_method("MMCONTEXT_BATCH_NORM_ACT", method);
  if (chosen == "torch") return {};
  const Tensor added = given(residual), w = given(weight), b = given(bias), m = given(mean),
               v = given(variance), n = given(batches), o = given(offset);
  const int code = activation_code(activation);
  TORCH_CHECK_VALUE(batch || m.defined(), "without statistics of the batch there must be others");
  TORCH_CHECK_VALUE(batch || !o.defined(), "an offset needs statistics of the batch");
  if (!refusal(x, added, {&w, &b, &m, &v, &o}, batch, code, chosen == "null").empty()) return {};
  if (batch) {
    // The kernels write these in place; autograd has to know.
    for (const Tensor* written : {&m, &v, &n}) {
      if (written->defined() && !written->is_inference()) {
        written->unsafeGetTensorImpl()->bump_version();
      }
    }
  }
  if (wants_gradient({&x, &added, &w, &b, &o})) {
    return Differentiable::apply(x, residual, weight, bias, mean, variance, batches, offset,
                                 batch, momentum, eps, static_cast<int64_t>(code));
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return std::get<0>(run_forward(x, added, {w, b, m, v, o, eps}, n, batch, momentum, code));
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("batch_norm_act(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, "
        "Tensor(a!)? mean, Tensor(b!)? variance, Tensor(c!)? batches, Tensor? offset, "
        "bool batch, float momentum, float eps, str activation, str method) -> Tensor?");
  m.def("batch_norm_act_refusal(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, "
        "Tensor? mean, Tensor? variance, bool batch, str activation, bool on_host) -> str");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("batch_norm_act", &mmcontext::batch_norm_act);
  m.impl("batch_norm_act_refusal", &mmcontext::explain);
}
