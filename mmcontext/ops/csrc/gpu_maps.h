// What operators on channels-last maps of a GPU have in common.
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

// Whether an operator has to be differentiable; undefined tensors are passed over.
bool wants_gradient(std::initializer_list<const at::Tensor*> operands);

// A gradient as its map is: of one type, channels-last.
at::Tensor dense_gradient(const at::Tensor& grad, const at::Tensor& like);

// An uninitialised channels-last map.
at::Tensor empty_pixels(at::IntArrayRef sizes, const at::Tensor& like);

// Compile options of a kernel: -DNAME=value ...
std::string defines(std::initializer_list<std::pair<const char*, int64_t>> options);

// The method that is asked for, or that the environment variable says where it is empty.
std::string chosen_method(const char* variable, c10::string_view method);

// Why kernels for channels-last maps [B, C, H, W] with vectors of 16 bytes cannot serve x; empty
// where they can. on_host: for tensors of the CPU, which stand for those of a GPU.
std::string map_refusal(const at::Tensor& x, bool on_host);

}  // namespace mmcontext
