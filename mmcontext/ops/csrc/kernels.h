// Interface between the torch-facing code and the kernels, one set of which is compiled per
// instruction set. Plain data only: nothing here may be instantiated with wider instructions
// than the machine has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmcontext {

enum class Storage { kFloat, kDouble, kBFloat16, kHalf };

// A tensor seen as [batch, channel or group, tap, row, column], strides in elements.
struct Operand {
  char* data;
  const char* begin;  // the memory that may be read: [begin, end)
  const char* end;
  int64_t batch, channel, tap, row, col;
};

// One term of the sum: kernel plane `tap` read at (row + ker_y, col + ker_x) times the source
// read `offset` elements after the output pixel's place in the packed source.
struct Tap {
  int64_t tap, ker_y, ker_x, offset;
  int64_t mask;  // index of the validity mask for this ker_x
};

// A regular sub-grid of the output whose pixels all have the same taps. The forward pass has
// one; the gradient of the input has stride_y * stride_x of them.
struct Phase {
  int64_t rows, cols;                  // of the sub-grid
  int64_t out_y, out_x;                // its first pixel; steps are Plan::out_step_*
  int64_t src_y, src_x;                // source position of the first tap of pixel (0, 0)
  int64_t span_y, span_x;              // distance between the first and the last tap
  int64_t taps, masks;                 // numbers of taps and of distinct ker_x
  const Tap* tap;
  const int64_t* mask_shift;           // ker_x of each mask
};

enum class Task { kForward, kGradInput, kGradWeight };

struct Plan {
  Task task;
  Storage storage;
  int64_t element_bytes;
  bool pixel_major;                    // the channels-last kernels serve it
  bool lattice;                        // taps are a dense kernel_w x kernel_w square
  bool interleaved;
  Operand source, kernel, target;      // grad_weight: x, grad, gradient of the kernels
  int64_t batch, groups, shared;       // shared: channels per group
  int64_t group_step, channel_step;    // channel = group * group_step + i * channel_step
  int64_t src_rows, src_cols, ker_rows, ker_cols, out_rows, out_cols;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t src_step_y, src_step_x, out_step_y, out_step_x;
  int64_t phases;
  const Phase* phase;
  // Tiling of the packed kernels.
  int64_t strip, strips, tile, tiles, chunk;
  int64_t phase_pitch, row_pitch, channel_pitch;   // packed source, in elements
  int64_t pack_rows;                               // output rows packed together
  int64_t units;                                   // independent pieces of work
  size_t scratch_bytes;                            // per thread
};

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
};

struct Kernels {
  const char* name;
  int64_t vector_bytes;
  int64_t wide_channels;               // pixel-major block kernels: channels per step
  void (*run)(const Plan& plan, int64_t begin, int64_t end, char* scratch);
  void (*affine)(const Affine& plan, int64_t begin, int64_t end);  // rows
  // Sums of distances from the centre, or of their squares: of a row; of some pixels.
  double (*row_sum)(const float* from, int64_t count, float centre, bool squares);
  void (*pixel_sums)(const float* from, int64_t pixels, int64_t channels, const float* centre,
                     float* to, bool squares);
  int64_t conv_outputs;                // outputs of a convolution taken at a time at most
  // scratch: conv_outputs * taps * depth floats, taps * kConvPixels pointers, 128 bytes.
  void (*convolve)(const Convolution& plan, int64_t begin, int64_t end, char* scratch);
};

extern const Kernels kBaseline;
#if defined(__x86_64__) && defined(__GNUC__)
#define MMCONTEXT_X86 1
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace mmcontext
