// The local aggregation on the CPU: describes a call and chooses the kernels for it.
#include "plans.h"

#include "instruction_sets.h"

namespace mmcontext {
namespace {

int64_t bytes_of(Storage storage) {
  return storage == Storage::kDouble ? 8 : storage == Storage::kFloat ? 4 : 2;
}

Operand operand(const View& t, int64_t element_bytes) {
  Operand o;
  const bool kernels = t.dim == 5;
  const auto stride = [&](int64_t dim) { return t.sizes[dim] == 1 ? 0 : t.strides[dim]; };
  o.data = static_cast<char*>(t.data);
  o.batch = stride(0);
  o.channel = stride(1);
  o.tap = kernels ? stride(2) : 0;
  o.row = stride(t.dim - 2);
  // A single column counts as contiguous: the kernels then load it like any other row.
  o.col = t.sizes[t.dim - 1] == 1 ? 1 : t.strides[t.dim - 1];
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim; ++d) last += (t.sizes[d] - 1) * t.strides[d];
  o.begin = o.data;
  o.end = o.data + (last + 1) * element_bytes;
  return o;
}

Aggregation describe(Task task, Storage storage, const View& source, const View& kernel,
                     const View& target, const RawGeometry& geometry) {
  Aggregation call{};
  call.task = task;
  call.storage = storage;
  call.element_bytes = bytes_of(storage);
  call.interleaved = geometry.interleaved;
  call.source = operand(source, call.element_bytes);
  call.kernel = operand(kernel, call.element_bytes);
  call.target = operand(target, call.element_bytes);
  call.batch = source.sizes[0];
  call.groups = (task == Task::kGradWeight ? target : kernel).sizes[1];
  call.shared = source.sizes[1] / call.groups;
  call.group_step = geometry.interleaved ? 1 : call.shared;
  call.channel_step = geometry.interleaved ? call.groups : 1;
  call.src_rows = source.sizes[2];
  call.src_cols = source.sizes[3];
  call.ker_rows = kernel.sizes[kernel.dim - 2];
  call.ker_cols = kernel.sizes[kernel.dim - 1];
  call.out_rows = target.sizes[target.dim - 2];
  call.out_cols = target.sizes[target.dim - 1];
  call.kernel_h = geometry.kernel[0];
  call.kernel_w = geometry.kernel[1];
  call.stride_h = geometry.stride[0];
  call.stride_w = geometry.stride[1];
  call.pad_h = geometry.padding[0];
  call.pad_w = geometry.padding[1];
  call.dilation_h = geometry.dilation[0];
  call.dilation_w = geometry.dilation[1];
  return call;
}

}  // namespace

void run(Task task, Storage storage, const View& source, const View& kernel, const View& target,
         const RawGeometry& geometry) {
  for (int64_t d = 0; d < target.dim; ++d) {
    if (target.sizes[d] == 0) return;
  }
  const std::vector<const Kernels*> sets = allowed_kernels();
  const Aggregation call = describe(task, storage, source, kernel, target, geometry);
  if (run_by_pixel(call, *sets[0])) return;
  // If a channels-last tensor has too few channels for wide vectors, narrower ones are several
  // times as fast as packing its pixels into planes.
  const bool pixels = call.source.channel == 1;
  if (pixels && sets.size() > 1 && run_by_pixel(call, *sets[1])) return;
  run_planar(call, *sets[0]);
}

}  // namespace mmcontext
