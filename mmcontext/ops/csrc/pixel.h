// Plans for the kernels for channels-last tensors (pixel*.inc).
#pragma once

#include "aggregation.h"

namespace mmcontext {

// A unit of work: some rows of the output of some groups.
struct PixelPlan : Aggregation {
  int64_t parts;                       // of the groups
  int64_t strip, strips;               // rows at a time
  int64_t units;
};

// Groups of neighbouring channels. The gradient of the kernels needs no scratch.
struct PixelBlock : PixelPlan {
  int64_t kept_rows;                   // of kernels, as float32; 0 if they are read in place
  Buffer kernel_rows;                  // float [kept_rows, columns, taps]
};

// A term of the sum at one pixel: pointers to its source and its kernels.
template <class T> struct PixelTap {
  const T* x;
  const float* w;
};

// Interleaved groups, each of every `groups`-th channel; forward and gradient of the input.
struct PixelInterleaved : PixelPlan {
  int64_t turned_rows;                 // of kernels that a strip uses
  Buffer turned;                       // float [turned_rows, columns, taps, groups]
  Buffer widened;                      // float [groups, taps]: of one pixel
  Buffer sources;                      // PixelTap [taps]: the indirection buffer
};

// The same for the gradient of the kernels.
struct PixelInterleavedGradWeight : PixelPlan {
  Buffer sums;                         // float [taps, lanes]
  Buffer widened;                      // float [lanes, taps]
  Buffer sources;                      // pointers [taps]: the indirection buffer
  Buffer zeros;                        // [channels]: what lies beyond the border
};

}  // namespace mmcontext
