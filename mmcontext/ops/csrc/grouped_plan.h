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

// The plan leaves the addresses and strides of tensors zero; the launch fills them in.
struct GroupedPlan {
  CudaLaunch main, sum;                // sum: for the gradient of w only
  GroupedParameters parameters;
  int parts;                           // for the gradient of w; 0: no tile fits on the GPU
};

// Why groups of this shape are not supported; empty if they are. Arguments as in GroupedProblem.
std::string grouped_refusal(int in, int out, int groups, int kernel, int stride);

// Estimated microseconds for a supported problem on this GPU.
double grouped_microseconds(const GroupedProblem& problem, const CudaDevice& device);

GroupedPlan plan_grouped(const GroupedProblem& problem, const CudaDevice& device);

}  // namespace mmcontext
