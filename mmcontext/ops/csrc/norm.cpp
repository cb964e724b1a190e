// Norms at inference as scale and shift, the pass that applies them, and means.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "conv_norm_act.h"
#include "instruction_sets.h"
#include "layout.h"
#include "work.h"

namespace mmcontext {

using at::Tensor;

const float* per_channel(const MaybeTensor& t, int64_t channels, const char* name) {
  if (!t) return nullptr;
  TORCH_CHECK_VALUE(t->scalar_type() == at::kFloat && t->is_contiguous() &&
                        t->numel() == channels,
                    name, " must be float32 [", channels, "], got ", t->toString(), " ",
                    t->sizes());
  return t->const_data_ptr<float>();
}

ScaleAndShift Norm::of_batch(int64_t channels) const {
  ScaleAndShift to{std::vector<float>(channels, 1.f), std::vector<float>(channels)};
  const float* means = per_channel(mean, channels, "mean");
  const float* variances = per_channel(variance, channels, "variance");
  TORCH_CHECK_VALUE(!means == !variances, "mean and variance go together");
  if (!means) return to;
  const float* weights = per_channel(weight, channels, "norm_weight");
  const float* biases = per_channel(bias, channels, "norm_bias");
  for (int64_t c = 0; c < channels; ++c) {
    to.scale[c] = (weights ? weights[c] : 1.f) / std::sqrt(variances[c] + float(eps));
    to.shift[c] = (biases ? biases[c] : 0.f) - means[c] * to.scale[c];
  }
  return to;
}

namespace {

// Least work per thread, in elements; pixels per partial sum.
constexpr int64_t kGrain = 16384, kChunk = 64;

int64_t grain(int64_t length) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length));
}

// For a channels-last tensor the widest set whose vectors divide its rows evenly, if there is one.
const Kernels& kernels_for(const Tensor& x) {
  const std::vector<const Kernels*> sets = allowed_kernels();
  if (lies_by_pixel(x)) {
    for (const Kernels* set : sets) {
      if (x.size(1) % (set->vector_bytes / int64_t(sizeof(float))) == 0) return *set;
    }
  }
  return *sets.front();
}

// Sums of (value - centre), or of its square, over each group of each sample.
std::vector<double> group_sums(const Tensor& x, int64_t groups, const std::vector<float>& centre,
                               bool squares) {
  const int64_t batch = x.size(0), channels = x.size(1), plane = x.size(2) * x.size(3);
  const int64_t shared = channels / groups;
  const float* data = x.const_data_ptr<float>();
  const Kernels& set = kernels_for(x);
  std::vector<double> sums(batch * groups);
  if (!lies_by_pixel(x)) {
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
  const int64_t chunks = ceil_div(plane, kChunk);
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

// Whether a map is one that the kernels read: dense float32.
bool is_map(const Tensor& x) {
  return x.dim() == 4 && x.scalar_type() == at::kFloat && (x.is_contiguous() || lies_by_pixel(x));
}

Tensor channel_means(at::TensorList maps) {
  TORCH_CHECK_VALUE(!maps.empty() && maps[0].dim() == 4, "maps must be some of [B, C, H, W]");
  const Tensor& first = maps[0];
  const int64_t batch = first.size(0), channels = first.size(1);
  const double count = double(first.size(2) * first.size(3));
  Tensor means = at::zeros({batch, channels, 1, 1}, first.options());
  float* to = means.mutable_data_ptr<float>();
  const std::vector<float> zeros(batch * channels);
  for (const Tensor& map : maps) {
    TORCH_CHECK_VALUE(is_map(map) && map.sizes() == first.sizes(),
                      "maps must be float32 [B, C, H, W] of one shape, contiguous or "
                      "channels-last");
    const std::vector<double> sums = group_sums(map, channels, zeros, false);
    for (int64_t i = 0; i < batch * channels; ++i) to[i] += float(sums[i] / count);
  }
  return means;
}

}  // namespace

ScaleAndShift Norm::of_groups(const Tensor& x) const {
  const int64_t batch = x.size(0), channels = x.size(1);
  TORCH_CHECK_VALUE(groups > 0 && channels % groups == 0, "norm_groups must divide ", channels,
                    " channels, got ", groups);
  const float* weights = per_channel(weight, channels, "norm_weight");
  const float* biases = per_channel(bias, channels, "norm_bias");
  const int64_t shared = channels / groups;
  const double count = double(shared * x.size(2) * x.size(3));
  const std::vector<float> zeros(batch * groups);
  const std::vector<double> sums = group_sums(x, groups, zeros, false);
  std::vector<float> means(batch * groups);
  for (size_t i = 0; i < means.size(); ++i) means[i] = float(sums[i] / count);
  const std::vector<double> squares = group_sums(x, groups, means, true);
  ScaleAndShift to{std::vector<float>(batch * channels), std::vector<float>(batch * channels)};
  for (int64_t i = 0; i < batch * channels; ++i) {
    const int64_t channel = i % channels, group = i / shared;
    const float root = float(std::sqrt(squares[group] / count + eps));
    to.scale[i] = (weights ? weights[channel] : 1.f) / root;
    to.shift[i] = (biases ? biases[channel] : 0.f) - means[group] * to.scale[i];
  }
  return to;
}

void scale_and_add(const Tensor& x, const ScaleAndShift& by, const MaybeTensor& residual,
                   Activation activation, const Tensor& out) {
  Affine plan{};
  plan.activation = activation;
  plan.by_pixel = lies_by_pixel(x);  // If x is contiguous too: the longer rows.
  plan.source = x.const_data_ptr<float>();
  plan.residual = residual ? residual->const_data_ptr<float>() : nullptr;
  plan.scale = by.scale.data();
  plan.shift = by.shift.data();
  plan.target = out.mutable_data_ptr<float>();
  plan.channels = int64_t(by.scale.size());
  const int64_t plane = x.size(2) * x.size(3);
  plan.rows_per_sample = plan.by_pixel ? plane : x.size(1);
  plan.length = plan.by_pixel ? x.size(1) : plane;
  const Kernels& set = kernels_for(x);
  at::parallel_for(0, x.size(0) * plan.rows_per_sample, grain(plan.length),
                   [&](int64_t begin, int64_t end) { set.affine(plan, begin, end); });
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("channel_means(Tensor[] maps) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CPU, m) {
  m.impl("channel_means", &mmcontext::channel_means);
}
