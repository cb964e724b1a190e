// The algorithms of the local aggregation on the CPU.
#pragma once

#include "kernels.h"

namespace mmcontext {

// Does the call by the kernels of a set for channels-last tensors and returns true; false where
// they do not serve it.
bool run_by_pixel(const Aggregation& call, const Kernels& set);

// Does any call.
void run_planar(const Aggregation& call, const Kernels& set);

// A tensor as the aggregation sees it, without torch: a map [batch, channels, rows, columns] or
// kernels [batch, groups, taps, rows, columns]; strides in elements.
struct View {
  void* data;
  int64_t dim;
  const int64_t *sizes, *strides;
};

// Every pair is (vertical, horizontal).
struct Pairs {
  const int64_t *kernel, *stride, *padding, *dilation;
  bool interleaved;
};

// Does a task, see run_on_cpu, by the kernels that serve it best. An empty target is left alone.
void run(Task task, Storage storage, const View& source, const View& kernel, const View& target,
         const Pairs& pairs);

// Whether the kernels of a set are compiled for this size of neighbourhood.
inline bool compiled_square(const Aggregation& call) {
  return call.kernel_h == call.kernel_w &&
         (call.kernel_w == 3 || call.kernel_w == 5 || call.kernel_w == 7);
}

// Whether taps are a dense square that float kernels are compiled for.
inline bool is_lattice(const Aggregation& call) {
  return call.stride_h == 1 && call.stride_w == 1 && call.dilation_h == 1 &&
         call.dilation_w == 1 && call.storage != Storage::kDouble && compiled_square(call);
}

}  // namespace mmcontext
