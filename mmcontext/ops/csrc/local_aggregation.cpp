// What a call of the local aggregation on the CPU asks for.
#include "local_aggregation.h"

#include <torch/library.h>

#include "instruction_sets.h"
#include "plans.h"

namespace mmcontext {
namespace {

Operand operand(const Tensor& t) {
  Operand o;
  const bool kernels = t.dim() == 5;
  const auto stride = [&](int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); };
  o.data = static_cast<char*>(t.data_ptr());
  o.batch = stride(0);
  o.channel = stride(1);
  o.tap = kernels ? stride(2) : 0;
  o.row = stride(kernels ? 3 : 2);
  // A single column counts as contiguous: the kernels then load it as any other row.
  o.col = t.size(-1) == 1 ? 1 : t.stride(-1);
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  o.begin = o.data;
  o.end = o.data + (last + 1) * t.element_size();
  return o;
}

Aggregation describe(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                     const Geometry& g) {
  Aggregation call{};
  call.task = task;
  call.storage = storage_of(source);
  call.element_bytes = source.element_size();
  call.interleaved = g.interleaved;
  call.source = operand(source);
  call.kernel = operand(kernel);
  call.target = operand(target);
  call.batch = source.size(0);
  call.groups = (task == Task::kGradWeight ? target : kernel).size(1);
  call.shared = source.size(1) / call.groups;
  call.group_step = g.interleaved ? 1 : call.shared;
  call.channel_step = g.interleaved ? call.groups : 1;
  call.src_rows = source.size(2);
  call.src_cols = source.size(3);
  call.ker_rows = kernel.size(-2);
  call.ker_cols = kernel.size(-1);
  call.out_rows = target.size(-2);
  call.out_cols = target.size(-1);
  call.kernel_h = g.kernel[0];
  call.kernel_w = g.kernel[1];
  call.stride_h = g.stride[0];
  call.stride_w = g.stride[1];
  call.pad_h = g.padding[0];
  call.pad_w = g.padding[1];
  call.dilation_h = g.dilation[0];
  call.dilation_w = g.dilation[1];
  return call;
}

}  // namespace

void run_on_cpu(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                const Geometry& geometry) {
  if (target.numel() == 0) return;
  run(describe(task, source, kernel, target, geometry));
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("instruction_set() -> str",
        [] { return std::string(mmcontext::allowed_kernels().front()->name); });
  m.def("instruction_sets() -> str[]", [] {
    std::vector<std::string> names;
    for (const mmcontext::Kernels* set : mmcontext::available_kernels()) names.push_back(set->name);
    return names;
  });
}
