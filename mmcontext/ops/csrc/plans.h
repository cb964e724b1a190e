// The algorithms of the local aggregation on the CPU.
#pragma once

#include "kernels.h"

namespace mmcontext {

// Runs the call with the channels-last kernels of a set and returns true; returns false if they do
// not support it.
bool run_by_pixel(const Aggregation& call, const Kernels& set);

// Runs any call.
void run_planar(const Aggregation& call, const Kernels& set);

// A tensor as the aggregation sees it, without torch: a map [batch, channels, rows, columns] or
// kernels [batch, groups, taps, rows, columns]; strides in elements.
struct View {
  void* data;
  int64_t dim;
  const int64_t *sizes, *strides;
};

// The geometry of a call, without torch; pairs are (vertical, horizontal).
struct RawGeometry {
  const int64_t *kernel, *stride, *padding, *dilation;
  bool interleaved;
};

// Runs a task (see run_on_cpu) with the kernels best suited to it. Does nothing if the target is
// empty.
void run(Task task, Storage storage, const View& source, const View& kernel, const View& target,
         const RawGeometry& geometry);

// Whether there are kernels compiled for this size of neighbourhood.
inline bool compiled_square(const Aggregation& call) {
  return call.kernel_h == call.kernel_w &&
         (call.kernel_w == 3 || call.kernel_w == 5 || call.kernel_w == 7);
}

// Whether the taps form a dense square that the float kernels are compiled for.
inline bool is_lattice(const Aggregation& call) {
  return call.stride_h == 1 && call.stride_w == 1 && call.dilation_h == 1 &&
         call.dilation_w == 1 && call.storage != Storage::kDouble && compiled_square(call);
}

}  // namespace mmcontext
