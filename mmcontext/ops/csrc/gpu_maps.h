// Helpers shared by the operators on channels-last maps on a GPU.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <initializer_list>
#include <string>
#include <utility>

namespace mmcontext {

inline at::Tensor given(const c10::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); }

inline uint64_t address_of(const at::Tensor& t) {
  return t.defined() ? reinterpret_cast<uint64_t>(t.data_ptr()) : 0;
}

// Whether a gradient is needed for any of the operands; undefined tensors are ignored.
bool wants_gradient(std::initializer_list<const at::Tensor*> operands);

// The gradient in its map's dtype and channels-last.
at::Tensor dense_gradient(const at::Tensor& grad, const at::Tensor& like);

// An uninitialised channels-last map.
at::Tensor empty_pixels(at::IntArrayRef sizes, const at::Tensor& like);

// An uninitialised contiguous float32 tensor on the device of another.
at::Tensor empty_floats(at::IntArrayRef sizes, const at::Tensor& like);

// Compile options of a kernel: -DNAME=value ...
std::string defines(std::initializer_list<std::pair<const char*, int64_t>> options);

// The method asked for; if that is empty, the one that the environment variable names.
std::string chosen_method(const char* variable, c10::string_view method);

// Why no kernel supports x [B, C, H, W] whatever its layout; empty if some may. on_host: x is a CPU
// tensor that stands in for a GPU tensor.
std::string tensor_refusal(const at::Tensor& x, bool on_host);

// Why the kernels for channels-last maps [B, C, H, W] with 16-byte vectors do not support x; empty
// if they do.
std::string map_refusal(const at::Tensor& x, bool on_host);

}  // namespace mmcontext
