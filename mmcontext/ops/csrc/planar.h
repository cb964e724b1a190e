// Plans for the kernels that pack tiles of their operands into scratch (planar*.inc).
#pragma once

#include "aggregation.h"

namespace mmcontext {

// One term of the sum: kernel plane `tap` at (row + ker_y, col + ker_x), times the packed source
// at `offset` elements from the output pixel's position.
struct Tap {
  int64_t tap, ker_y, ker_x, offset;
  int64_t mask;  // index of the validity mask for this ker_x
};

// A regular sub-grid of the output whose pixels all have the same taps. The gradient of the input
// has stride_y * stride_x of them, the other tasks one.
struct Phase {
  int64_t rows, cols;                  // of the sub-grid
  int64_t out_y, out_x;                // its first pixel; steps are PlanarSum::out_step_*
  int64_t src_y, src_x;                // source position of the first tap of pixel (0, 0)
  int64_t span_y, span_x;              // distance between the first and the last tap
  int64_t taps, masks;                 // numbers of taps and of distinct ker_x
  const Tap* tap;
  const int64_t* mask_shift;           // ker_x of each mask
};

// What both have in common: the output is cut into strips of rows and tiles of columns, and the
// source that a strip and tile read is packed.
struct PlanarPlan : Aggregation {
  bool lattice;                        // taps are a dense kernel_w x kernel_w square
  int64_t src_step_y, src_step_x;      // source step between neighbouring outputs
  int64_t phases;
  const Phase* phase;
  int64_t strip, strips, tile, tiles;
  int64_t phase_pitch, row_pitch, channel_pitch;   // of the packed source, in elements
  int64_t units;                       // independent pieces of work
  Buffer packed_source;                // [channels at a time, channel_pitch], plus one vector
};

// Forward pass and gradient of the input.
struct PlanarSum : PlanarPlan {
  int64_t out_step_y, out_step_x;
  int64_t chunk;                       // channels at a time
  Buffer packed_kernels;               // [columns / lanes, output rows packed, taps, lanes]
  Buffer masks;                        // [masks, columns]
};

// Gradient of the kernels: a sum over the channels of a group.
struct PlanarGradWeight : PlanarPlan {
  Buffer packed_gradient;              // [columns / lanes, strip, channels of a group, lanes]
};

}  // namespace mmcontext
