// Plan of the convolution's kernels (conv.inc).
#pragma once

#include "aggregation.h"
#include "norm.h"

namespace mmcontext {

// Pixels that one piece of work of a convolution has at most.
constexpr int64_t kConvPixels = 96;

// target = activation(scale * conv(source) + shift [+ residual]), channels-last.
struct Convolution {
  Activation activation;
  const float *source, *weight, *residual, *scale, *shift;
  bool weight_by_tap;                  // [outputs, taps, depth] in place of [.., depth, taps]
  const float* zeros;                  // as many as channels
  float* target;
  int64_t channels, outputs, groups, depth, shared;  // depth, shared: in and out of a group
  int64_t blocks;                      // pieces of a group's outputs, taken one at a time
  int64_t src_rows, src_cols, out_rows, out_cols, pixels, taps;
  int64_t ranges, parts;               // the pixels, cut in ranges, and each of these in parts
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t units;                       // range by range, block by block, part by part
  Buffer panel;                        // packed weights, float [taps, depth, outputs of a block]
  Buffer table;                        // pointers [taps, kConvPixels]: the indirection buffer
};

}  // namespace mmcontext
