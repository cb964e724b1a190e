// Convolutions at inference, with norm, residual and activation in the same pass.
#include <torch/library.h>
#include <ATen/ATen.h>

#include <array>
#include <vector>

#include "epilogue.h"
#include "huge_pages.h"
#include "instruction_sets.h"
#include "scratch.h"
#include "work.h"

namespace mmcontext {
namespace {

using at::Tensor;

// So many pixels a thread and more: threads divide the pixels, each lays out all weights for
// itself. Below: they divide the outputs.
constexpr int64_t kRange = 256;

std::array<int64_t, 2> pair_of(at::IntArrayRef value, const char* name, int64_t least) {
  TORCH_CHECK(value.size() == 2 && value[0] >= least && value[1] >= least, name,
              " must be two integers of at least ", least, ", got ", value);
  return {value[0], value[1]};
}

int64_t checked_out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad,
                         int64_t dilation) {
  const int64_t out = out_size(size, kernel, stride, pad, dilation);
  TORCH_CHECK(out > 0, "kernel of ", kernel, " with dilation ", dilation,
              " does not fit a padded input of ", size + 2 * pad);
  return out;
}

// The sizes of a convolution, checked.
Convolution describe(const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat && by_pixel(x),
              "x must be a float32 [B, C, H, W], channels-last");
  TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == at::kFloat &&
                  (weight.is_contiguous() || by_pixel(weight)),
              "weight must be a float32 [O, C / groups, kernel, kernel], contiguous or "
              "channels-last");
  Convolution plan{};
  plan.channels = x.size(1);
  plan.outputs = weight.size(0);
  TORCH_CHECK(groups > 0 && plan.channels == groups * weight.size(1) && plan.outputs % groups == 0,
              "groups ", groups, " and weight ", weight.sizes(), " do not go with ",
              plan.channels, " channels");
  const auto [stride_h, stride_w] = pair_of(stride, "stride", 1);
  const auto [pad_h, pad_w] = pair_of(padding, "padding", 0);
  const auto [dilation_h, dilation_w] = pair_of(dilation, "dilation", 1);
  plan.groups = groups;
  plan.depth = weight.size(1);
  plan.shared = plan.outputs / groups;
  plan.kernel_h = weight.size(2);
  plan.kernel_w = weight.size(3);
  plan.taps = plan.kernel_h * plan.kernel_w;
  plan.stride_h = stride_h, plan.stride_w = stride_w;
  plan.pad_h = pad_h, plan.pad_w = pad_w;
  plan.dilation_h = dilation_h, plan.dilation_w = dilation_w;
  plan.src_rows = x.size(2);
  plan.src_cols = x.size(3);
  plan.out_rows = checked_out_size(x.size(2), plan.kernel_h, stride_h, pad_h, dilation_h);
  plan.out_cols = checked_out_size(x.size(3), plan.kernel_w, stride_w, pad_w, dilation_w);
  plan.pixels = x.size(0) * plan.out_rows * plan.out_cols;
  return plan;
}

// Divides the work, and does it.
void run(Convolution& plan) {
  const Kernels& set = *allowed_kernels().front();
  plan.blocks = ceil_div(plan.shared, set.conv_outputs);
  const int64_t threads = at::get_num_threads();
  plan.ranges = plan.pixels >= kRange * threads ? threads : 1;
  plan.parts = ceil_div(plan.pixels, plan.ranges * kConvPixels);
  plan.units = plan.ranges * plan.groups * plan.blocks * plan.parts;
  Ledger ledger;
  plan.panel = ledger.book<float>(plan.taps * plan.depth * set.conv_outputs);
  plan.table = ledger.book<const float*>(plan.taps * kConvPixels);
  run_units(plan, ledger, set.convolve);
}

Tensor conv_norm_act(const Tensor& x, const Tensor& weight, const c10::optional<Tensor>& bias,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                     int64_t groups, const c10::optional<Tensor>& mean,
                     const c10::optional<Tensor>& variance,
                     const c10::optional<Tensor>& norm_weight,
                     const c10::optional<Tensor>& norm_bias, double eps,
                     const c10::optional<Tensor>& residual, c10::string_view activation) {
  Convolution plan = describe(x, weight, stride, padding, dilation, groups);
  Tensor out = on_huge_pages(
      at::empty({x.size(0), plan.outputs, plan.out_rows, plan.out_cols},
                x.options().memory_format(at::MemoryFormat::ChannelsLast)));
  if (out.numel() == 0) return out;
  if (residual) {
    TORCH_CHECK(residual->scalar_type() == at::kFloat && residual->sizes() == out.sizes() &&
                    by_pixel(*residual),
                "residual must be a channels-last float32 ", out.sizes());
    plan.residual = residual->const_data_ptr<float>();
  }
  Norm norm{mean, variance, norm_weight, norm_bias, eps};
  std::vector<float> scale, shift;
  scale_and_shift(norm, plan.outputs, scale, shift);
  if (const float* biases = per_channel(bias, plan.outputs, "bias")) {
    for (int64_t c = 0; c < plan.outputs; ++c) shift[c] += biases[c] * scale[c];
  }
  const std::vector<float> zeros(plan.channels);
  plan.activation = activation_of(activation);
  plan.source = x.const_data_ptr<float>();
  plan.weight = weight.const_data_ptr<float>();
  plan.weight_by_tap = !weight.is_contiguous();
  plan.scale = scale.data();
  plan.shift = shift.data();
  plan.zeros = zeros.data();
  plan.target = out.mutable_data_ptr<float>();
  run(plan);
  return out;
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("conv_norm_act(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
        "int[] dilation, int groups, Tensor? mean, Tensor? variance, Tensor? norm_weight, "
        "Tensor? norm_bias, float eps, Tensor? residual, str activation) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CPU, m) {
  m.impl("conv_norm_act", &mmcontext::conv_norm_act);
}
