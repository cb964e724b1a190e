// Interface between the code that knows torch and the kernels, which are compiled once per
// instruction set. Plain data only: nothing here may be instantiated with wider instructions
// than the machine has.
#pragma once

#include "aggregation.h"
#include "conv.h"
#include "norm.h"
#include "pixel.h"
#include "planar.h"

namespace mmcontext {

// Runs units [begin, end) of a plan, in a thread's scratch.
template <class Plan> using Kernel = void(const Plan& plan, int64_t begin, int64_t end,
                                          char* scratch);

struct Kernels {
  const char* name;
  int64_t vector_bytes;
  int64_t wide_channels;               // PixelBlock: channels per step
  int64_t conv_outputs;                // most outputs per block of a convolution
  Kernel<PlanarSum>* planar_sum;
  Kernel<PlanarGradWeight>* planar_grad_weight;
  Kernel<PixelBlock>*pixel_block, *pixel_block_grad_weight;
  Kernel<PixelInterleaved>* pixel_interleaved;
  Kernel<PixelInterleavedGradWeight>* pixel_interleaved_grad_weight;
  Kernel<Convolution>* convolve;
  void (*affine)(const Affine& plan, int64_t begin, int64_t end);  // rows
  // Sums of (value - centre), or of its square: over a row; per channel over some pixels.
  double (*row_sum)(const float* from, int64_t count, float centre, bool squares);
  void (*pixel_sums)(const float* from, int64_t pixels, int64_t channels, const float* centre,
                     float* to, bool squares);
};

extern const Kernels kBaseline;
#if defined(__x86_64__) && defined(__GNUC__)
#define MMCONTEXT_X86 1
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace mmcontext
