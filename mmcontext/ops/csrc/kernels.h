// Interface between the torch-facing code and the kernels, one set of which is compiled per
// instruction set. Plain data only: nothing here may be instantiated with wider instructions
// than the machine has.
#pragma once

#include "aggregation.h"
#include "conv.h"
#include "norm.h"
#include "pixel.h"
#include "planar.h"

namespace mmcontext {

// Does units [begin, end) of a plan in a thread's scratch.
template <class Plan> using Kernel = void(const Plan& plan, int64_t begin, int64_t end,
                                          char* scratch);

struct Kernels {
  const char* name;
  int64_t vector_bytes;
  int64_t wide_channels;               // PixelBlock: channels per step
  int64_t conv_outputs;                // outputs of a convolution taken at a time at most
  Kernel<PlanarSum>* planar_sum;
  Kernel<PlanarGradWeight>* planar_grad_weight;
  Kernel<PixelBlock>*pixel_block, *pixel_block_grad_weight;
  Kernel<PixelInterleaved>* pixel_interleaved;
  Kernel<PixelInterleavedGradWeight>* pixel_interleaved_grad_weight;
  Kernel<Convolution>* convolve;
  void (*affine)(const Affine& plan, int64_t begin, int64_t end);  // rows
  // Sums of distances from the centre, or of their squares: of a row; of some pixels.
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
