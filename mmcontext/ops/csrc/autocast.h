// The dtype that autocast computes in, on every supported version of torch.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/version.h>

namespace mmcontext {

inline at::ScalarType autocast_type(c10::DeviceType device) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 4
  return at::autocast::get_autocast_dtype(device);
#else
  return device == c10::DeviceType::CUDA ? at::autocast::get_autocast_gpu_dtype()
                                         : at::autocast::get_autocast_cpu_dtype();
#endif
}

}  // namespace mmcontext
