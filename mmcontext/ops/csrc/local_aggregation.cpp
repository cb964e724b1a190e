// The local aggregation of torch tensors on the CPU.
#include "local_aggregation.h"

#include <torch/library.h>

#include <vector>

#include "instruction_sets.h"
#include "plans.h"

namespace mmcontext {
namespace {

View view(const Tensor& t) {
  return {t.data_ptr(), t.dim(), t.sizes().data(), t.strides().data()};
}

std::string instruction_set() { return allowed_kernels().front()->name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* set : available_kernels()) names.push_back(set->name);
  return names;
}

}  // namespace

void run_on_cpu(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                const Geometry& geometry) {
  run(task, storage_of(source), view(source), view(kernel), view(target),
      {geometry.kernel.data(), geometry.stride.data(), geometry.padding.data(),
       geometry.dilation.data(), geometry.interleaved});
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("instruction_set() -> str", &mmcontext::instruction_set);
  m.def("instruction_sets() -> str[]", &mmcontext::instruction_sets);
}
