// Whether tensors still have the values noted earlier: many small tensors in one call.
#include <torch/library.h>
#include <ATen/ATen.h>

#include <cstring>

namespace mmcontext {
namespace {

using at::Tensor;

bool same_values(at::TensorList tensors, const Tensor& noted) {
  TORCH_CHECK(noted.dim() == 1 && noted.is_contiguous(), "noted must be one contiguous axis");
  int64_t start = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t count = tensor.numel();
    if (start + count > noted.numel()) return false;
    if (tensor.scalar_type() == noted.scalar_type() && tensor.is_contiguous()) {
      // Bitwise, so that NaN equals itself.
      const int64_t size = noted.element_size();
      const char* there = static_cast<const char*>(noted.const_data_ptr()) + start * size;
      if (count && std::memcmp(tensor.const_data_ptr(), there, count * size) != 0) return false;
    } else if (!at::equal(tensor.reshape(-1).to(noted.scalar_type()),
                          noted.slice(0, start, start + count))) {
      return false;
    }
    start += count;
  }
  return start == noted.numel();
}

}  // namespace
}  // namespace mmcontext

// `noted`: the values of the tensors, flattened and concatenated, in their common dtype.
TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("same_values(Tensor[] tensors, Tensor noted) -> bool");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CPU, m) {
  m.impl("same_values", &mmcontext::same_values);
}
