// Plan of the norms' kernels (norm.inc).
#pragma once

#include <cstdint>

namespace mmcontext {

enum class Activation { kNone, kReLU, kSiLU };

// target = activation(scale * source + shift [+ residual]); rows are planes of a contiguous
// tensor, pixels of a channels-last one.
struct Affine {
  Activation activation;
  bool by_pixel;
  const float *source, *residual, *scale, *shift;
  float* target;
  int64_t rows_per_sample, length;     // length: elements in a row
  int64_t channels;                    // scales: those of one sample, or of the whole batch
};

}  // namespace mmcontext
