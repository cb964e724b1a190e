// Norms at inference, with the residual and the activation behind them in the same pass.
#include <ATen/Parallel.h>
#include <torch/library.h>
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "epilogue.h"
#include "instruction_sets.h"

namespace mmcontext {

using at::Tensor;

Activation activation_of(c10::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kReLU;
  TORCH_CHECK(name == "silu", "activation must be none, relu or silu, got ", name);
  return Activation::kSiLU;
}

bool by_pixel(const Tensor& x) { return x.is_contiguous(at::MemoryFormat::ChannelsLast); }

const float* per_channel(const c10::optional<Tensor>& t, int64_t channels, const char* name) {
  if (!t) return nullptr;
  TORCH_CHECK(t->scalar_type() == at::kFloat && t->is_contiguous() && t->numel() == channels,
              name, " must be float32 [C]");
  return t->const_data_ptr<float>();
}

void scale_and_shift(const Norm& norm, int64_t channels, std::vector<float>& scale,
                     std::vector<float>& shift) {
  scale.assign(channels, 1.f);
  shift.assign(channels, 0.f);
  const float* means = per_channel(norm.mean, channels, "mean");
  const float* variances = per_channel(norm.variance, channels, "variance");
  TORCH_CHECK(!means == !variances, "mean and variance go together");
  if (!means) return;
  const float* weights = per_channel(norm.weight, channels, "weight");
  const float* biases = per_channel(norm.bias, channels, "bias");
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = (weights ? weights[c] : 1.f) / std::sqrt(variances[c] + float(norm.eps));
    shift[c] = (biases ? biases[c] : 0.f) - means[c] * scale[c];
  }
}

namespace {

// What a thread should at least have to do, in elements; pixels summed in one go.
constexpr int64_t kGrain = 16384, kChunk = 64;

int64_t grain(int64_t length) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length));
}

// The widest set whose vectors fill the rows of a channels-last tensor, if there is one.
const Kernels& kernels_for(const Tensor& x) {
  const std::vector<const Kernels*> sets = allowed_kernels();
  if (by_pixel(x)) {
    for (const Kernels* set : sets) {
      if (x.size(1) % (set->vector_bytes / int64_t(sizeof(float))) == 0) return *set;
    }
  }
  return *sets.front();
}

void check_same(const Tensor& x, const Tensor& other, const char* name) {
  TORCH_CHECK(other.scalar_type() == at::kFloat && other.sizes() == x.sizes() &&
                  (by_pixel(x) ? by_pixel(other) : other.is_contiguous()),
              name, " must be float32 with the shape and layout of x");
}

void check_input(const Tensor& x, const Tensor& out) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat && (x.is_contiguous() || by_pixel(x)),
              "x must be a float32 [B, C, H, W], contiguous or channels-last");
  check_same(x, out, "out");
}

// scale and shift: of C channels, or of B * C.
void apply(const Tensor& x, const std::vector<float>& scale, const std::vector<float>& shift,
           const c10::optional<Tensor>& residual, Activation activation, const Tensor& out) {
  if (x.numel() == 0) return;
  Affine plan{};
  plan.activation = activation;
  plan.by_pixel = by_pixel(x);
  plan.source = x.const_data_ptr<float>();
  plan.residual = residual ? residual->const_data_ptr<float>() : nullptr;
  plan.scale = scale.data();
  plan.shift = shift.data();
  plan.target = out.mutable_data_ptr<float>();
  plan.channels = int64_t(scale.size());
  const int64_t plane = x.size(2) * x.size(3);
  plan.rows_per_sample = plan.by_pixel ? plane : x.size(1);
  plan.length = plan.by_pixel ? x.size(1) : plane;
  const Kernels& set = kernels_for(x);
  at::parallel_for(0, x.size(0) * plan.rows_per_sample, grain(plan.length),
                   [&](int64_t begin, int64_t end) { set.affine(plan, begin, end); });
}

Tensor batch_norm_act(const Tensor& x, const Tensor& mean, const Tensor& variance,
                      const c10::optional<Tensor>& weight, const c10::optional<Tensor>& bias,
                      double eps, const c10::optional<Tensor>& residual,
                      c10::string_view activation, Tensor out) {
  check_input(x, out);
  if (residual) check_same(x, *residual, "residual");
  const c10::optional<Tensor> means = mean, variances = variance;
  std::vector<float> scale, shift;
  scale_and_shift({means, variances, weight, bias, eps}, x.size(1), scale, shift);
  apply(x, scale, shift, residual, activation_of(activation), out);
  return out;
}

// Sums over each group of each sample of the distances from its centre, or of their squares.
std::vector<double> group_sums(const Tensor& x, int64_t groups, const std::vector<float>& centre,
                               bool squares) {
  const int64_t batch = x.size(0), channels = x.size(1), plane = x.size(2) * x.size(3);
  const int64_t shared = channels / groups;
  const float* data = x.const_data_ptr<float>();
  const Kernels& set = kernels_for(x);
  std::vector<double> sums(batch * groups);
  if (!by_pixel(x)) {
    const int64_t length = shared * plane;
    at::parallel_for(0, batch * groups, grain(length), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        sums[i] = set.row_sum(data + i * length, length, centre[i], squares);
      }
    });
    return sums;
  }
  std::vector<float> centres(batch * channels);
  for (int64_t i = 0; i < batch * channels; ++i) centres[i] = centre[i / shared];
  const int64_t chunks = (plane + kChunk - 1) / kChunk;
  std::vector<float> partial(batch * chunks * channels);
  at::parallel_for(0, batch * chunks, grain(kChunk * channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / chunks, first = i % chunks * kChunk;
      set.pixel_sums(data + (sample * plane + first) * channels,
                     std::min(kChunk, plane - first), channels, &centres[sample * channels],
                     &partial[i * channels], squares);
    }
  });
  for (int64_t i = 0; i < batch * chunks; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      sums[i / chunks * groups + c / shared] += partial[i * channels + c];
    }
  }
  return sums;
}

Tensor group_norm_act(const Tensor& x, int64_t groups, const c10::optional<Tensor>& weight,
                      const c10::optional<Tensor>& bias, double eps, c10::string_view activation,
                      Tensor out) {
  check_input(x, out);
  const int64_t batch = x.size(0), channels = x.size(1);
  TORCH_CHECK(groups > 0 && channels % groups == 0, "groups must divide ", channels, " channels, ",
              "got ", groups);
  const float* weights = per_channel(weight, channels, "weight");
  const float* biases = per_channel(bias, channels, "bias");
  const int64_t shared = channels / groups;
  const double count = double(shared * x.size(2) * x.size(3));
  std::vector<float> mean(batch * groups), scale(batch * channels), shift(batch * channels);
  const std::vector<double> sums = group_sums(x, groups, mean, false);
  for (size_t i = 0; i < mean.size(); ++i) mean[i] = float(sums[i] / count);
  const std::vector<double> squares = group_sums(x, groups, mean, true);
  for (int64_t i = 0; i < batch * channels; ++i) {
    const int64_t channel = i % channels, group = i / shared;
    const float root = float(std::sqrt(squares[group] / count + eps));
    scale[i] = (weights ? weights[channel] : 1.f) / root;
    shift[i] = (biases ? biases[channel] : 0.f) - mean[group] * scale[i];
  }
  apply(x, scale, shift, c10::nullopt, activation_of(activation), out);
  return out;
}

Tensor channel_means(at::TensorList maps) {
  TORCH_CHECK(!maps.empty(), "maps must not be empty");
  const Tensor& first = maps[0];
  check_input(first, first);
  const int64_t batch = first.size(0), channels = first.size(1);
  const double count = double(first.size(2) * first.size(3));
  Tensor means = at::zeros({batch, channels, 1, 1}, first.options());
  float* to = means.mutable_data_ptr<float>();
  const std::vector<float> zeros(batch * channels);
  for (const Tensor& map : maps) {
    check_input(map, map);
    TORCH_CHECK(map.sizes() == first.sizes(), "maps must have one shape");
    const std::vector<double> sums = group_sums(map, channels, zeros, false);
    for (int64_t i = 0; i < batch * channels; ++i) to[i] += float(sums[i] / count);
  }
  return means;
}

}  // namespace
}  // namespace mmcontext

// `out` may be `x`.
TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("batch_norm_act(Tensor x, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, "
        "float eps, Tensor? residual, str activation, *, Tensor(a!) out) -> Tensor(a!)");
  m.def("group_norm_act(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, "
        "str activation, *, Tensor(a!) out) -> Tensor(a!)");
  m.def("channel_means(Tensor[] maps) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CPU, m) {
  m.impl("batch_norm_act", &mmcontext::batch_norm_act);
  m.impl("group_norm_act", &mmcontext::group_norm_act);
  m.impl("channel_means", &mmcontext::channel_means);
}
