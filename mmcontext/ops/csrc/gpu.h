// What operators need to run CUDA kernels: a GPU, and launches on its current stream.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_launch.h"

namespace mmcontext {

// The GPU that a tensor is on. CPU tensors stand in for GPU tensors in tests, and where the host
// overhead is measured: see set_host_launcher.
int64_t gpu_index(const at::Tensor& t);

// Why kernels cannot run on the GPU with this index; empty if they can.
const std::string& gpu_refusal(int64_t device);

const CudaDevice& gpu_limits(int64_t device);

// Whether a kernel has been compiled and loaded.
bool is_built(int64_t device, const CudaLaunch& launch);

// Starts compiling a kernel that will be launched soon.
void expect_kernel(int64_t device, const CudaLaunch& launch);

// Launches in order on the GPU's current stream; new kernels are compiled first.
void launch_on_gpu(int64_t device, const std::vector<CudaLaunch>& launches);

}  // namespace mmcontext
