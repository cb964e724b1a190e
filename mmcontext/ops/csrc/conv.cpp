// The C++ convolution: which calls it supports, its plan, and the call.
#include <ATen/ATen.h>

#include <array>
#include <vector>

#include "conv_norm_act.h"
#include "huge_pages.h"
#include "instruction_sets.h"
#include "layout.h"
#include "scratch.h"
#include "work.h"

namespace mmcontext {
namespace {

using at::Tensor;

// With at least so many pixels per thread, threads divide the pixels and each packs all weights
// for itself. With fewer, they divide the outputs.
constexpr int64_t kRange = 256;

std::array<int64_t, 2> pair_of(at::IntArrayRef value, const char* name, int64_t least) {
  TORCH_CHECK_VALUE(value.size() == 2 && value[0] >= least && value[1] >= least, name,
                    " must be two integers of at least ", least, ", got ", value);
  return {value[0], value[1]};
}

int64_t checked_out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad,
                         int64_t dilation) {
  const int64_t out = out_size(size, kernel, stride, pad, dilation);
  TORCH_CHECK_VALUE(out > 0, "kernel of ", kernel, " with dilation ", dilation,
                    " does not fit a padded input of ", size + 2 * pad);
  return out;
}

// Checks the sizes of a convolution and fills them in.
Convolution describe(const Tensor& x, const ConvArguments& conv) {
  const Tensor& weight = conv.weight;
  Convolution plan{};
  plan.channels = x.size(1);
  plan.outputs = weight.size(0);
  plan.groups = conv.groups;
  TORCH_CHECK_VALUE(weight.dim() == 4 && conv.groups > 0 &&
                        plan.channels == conv.groups * weight.size(1) &&
                        plan.outputs % conv.groups == 0,
                    "groups ", conv.groups, " and weight ", weight.sizes(), " do not go with ",
                    plan.channels, " channels");
  const auto [stride_h, stride_w] = pair_of(conv.stride, "stride", 1);
  const auto [pad_h, pad_w] = pair_of(conv.padding, "padding", 0);
  const auto [dilation_h, dilation_w] = pair_of(conv.dilation, "dilation", 1);
  plan.depth = weight.size(1);
  plan.shared = plan.outputs / conv.groups;
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

// Divides the work and runs it.
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

}  // namespace

std::vector<int64_t> conv_size(const Tensor& x, const ConvArguments& conv) {
  const Convolution plan = describe(x, conv);
  return {x.size(0), plan.outputs, plan.out_rows, plan.out_cols};
}

std::string conv_refusal(const Tensor& x, const ConvArguments& conv) {
  const Tensor& weight = conv.weight;
  if (!lies_by_pixel(x)) return "x is not channels-last";
  if (weight.scalar_type() != at::kFloat) return "weight is not float32";
  if (!weight.is_contiguous() && !lies_by_pixel(weight)) return "weight has gaps";
  return "";
}

std::string conv_disadvantage(const Tensor& x, const ConvArguments& conv) {
#ifndef MMCONTEXT_X86
  return "it has been compared with the library on x86 only";
#endif
  // It is faster where oneDNN would spend long reordering weights for few pixels, and on a par
  // elsewhere.
  const int64_t outputs = conv.weight.size(0) / conv.groups, depth = conv.weight.size(1);
  const int64_t taps = conv.weight.size(2) * conv.weight.size(3);
  if (x.size(0) * x.size(2) * x.size(3) < 8) return "the library is faster for fewer than 8 pixels";
  if (depth < 16) return "the library is faster for fewer than 16 channels per group";
  if (taps * depth > 8192) return "the library is faster for sums of more than 8192 terms";
  if (outputs < (taps == 1 ? 8 : 32)) return "the library is faster for so few outputs per group";
  return "";
}

Tensor convolve(const Tensor& x, const ConvArguments& conv, const Norm& norm,
                const MaybeTensor& residual, Activation activation) {
  Convolution plan = describe(x, conv);
  Tensor out = on_huge_pages(
      at::empty({x.size(0), plan.outputs, plan.out_rows, plan.out_cols},
                x.options().memory_format(at::MemoryFormat::ChannelsLast)));
  if (out.numel() == 0) return out;
  ScaleAndShift by = norm.of_batch(plan.outputs);
  if (const float* biases = per_channel(conv.bias, plan.outputs, "bias")) {
    for (int64_t c = 0; c < plan.outputs; ++c) by.shift[c] += biases[c] * by.scale[c];
  }
  const std::vector<float> zeros(plan.channels);
  plan.activation = activation;
  plan.source = x.const_data_ptr<float>();
  plan.weight = conv.weight.const_data_ptr<float>();
  plan.weight_by_tap = !conv.weight.is_contiguous();
  plan.residual = residual ? residual->const_data_ptr<float>() : nullptr;
  plan.scale = by.scale.data();
  plan.shift = by.shift.data();
  plan.zeros = zeros.data();
  plan.target = out.mutable_data_ptr<float>();
  run(plan);
  return out;
}

}  // namespace mmcontext
