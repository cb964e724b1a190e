// Launches for convolutions of narrow groups on tensor cores (cuda/grouped.cuh). Plain C++: no
// torch, no CUDA.
#pragma once

#include <string>

#include "cuda/grouped_parameters.cuh"
#include "cuda_launch.h"

namespace mmcontext {

enum class GroupedTask { kForward, kGradInput, kGradWeight };

struct GroupedProblem {
  GroupedTask task;
  int storage;                         // as cuda/primitives.cuh numbers them
  int in, out, groups;                 // channels of a group
  int kernel, stride;
  int batch, rows, cols;               // of x
  int bias;                            // whether one is added
};

// Where a launch has the addresses and strides of tensors, the plan leaves zeros.
struct GroupedPlan {
  CudaLaunch main, sum;                // sum: of the gradient of w only
  GroupedParameters parameters;
  int parts;                           // of the gradient of w; 0: nothing fits on the GPU
};

// Why groups of these channels are not served, from `kernel` to `groups` of a problem; or empty.
std::string grouped_refusal(int in, int out, int groups, int kernel, int stride);

// Estimated microseconds of a problem that is served, on the GPU for which it is planned.
double grouped_microseconds(const GroupedProblem& problem, const CudaDevice& device);

GroupedPlan plan_grouped(const GroupedProblem& problem, const CudaDevice& device);

}  // namespace mmcontext
