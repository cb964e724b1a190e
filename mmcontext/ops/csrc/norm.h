// Plan for the kernels of norms (norm.inc).
#pragma once

#include <cstdint>

namespace mmcontext {

enum class Activation { kNone, kReLU, kSiLU };

// target = activation(scale * source + shift [+ residual]). A row is a plane of a contiguous
// tensor, or a pixel of a channels-last one.
struct Affine {
  Activation activation;
  bool by_pixel;
  const float *source, *residual, *scale, *shift;
  float* target;
  int64_t rows_per_sample, length;     // length: elements in a row
  int64_t channels;                    // scales: one per channel, or per sample and channel
};

}  // namespace mmcontext
