// Plan for the convolution kernels (conv.inc).
#pragma once

#include "aggregation.h"
#include "norm.h"

namespace mmcontext {

// At most so many pixels in one unit of work of a convolution.
constexpr int64_t kConvPixels = 96;

// target = activation(scale * conv(source) + shift [+ residual]), channels-last.
struct Convolution {
  Activation activation;
  const float *source, *weight, *residual, *scale, *shift;
  bool weight_by_tap;                  // [outputs, taps, depth] instead of [.., depth, taps]
  const float* zeros;                  // as many as channels
  float* target;
  int64_t channels, outputs, groups, depth, shared;  // depth, shared: in, out per group
  int64_t blocks;                      // of a group's outputs, one packed panel each
  int64_t src_rows, src_cols, out_rows, out_cols, pixels, taps;
  int64_t ranges, parts;               // pixels are cut into ranges, each range into parts
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t units;                       // range by range, block by block, part by part
  Buffer panel;                        // packed weights, float [taps, depth, outputs of a block]
  Buffer table;                        // pointers [taps, kConvPixels]: the indirection buffer
};

}  // namespace mmcontext
