// The local aggregation on a GPU: its operands as the planner sees them.
#include <torch/library.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_plan.h"
#include "gpu.h"
#include "local_aggregation.h"

namespace mmcontext {
namespace {

// Starts compiling the gradient kernels of a new forward pass in the background: the backward pass
// will need them next, probably with the layouts of these operands.
void expect_gradients(int64_t device, const CudaProblem& forward) {
  CudaProblem of_x = forward, of_w = forward;
  of_x.task = Task::kGradInput;
  std::swap(of_x.source, of_x.target);
  of_w.task = Task::kGradWeight;
  std::swap(of_w.kernel, of_w.target);
  // The gradient of the kernels is written row-major.
  const int64_t row = forward.out_cols, tap = row * forward.out_rows;
  const int64_t group = tap * forward.kernel_h * forward.kernel_w;
  of_w.target = {forward.kernel.address, group * forward.groups, group, tap, row, 1};
  for (const CudaProblem& problem : {of_x, of_w}) {
    for (const CudaLaunch& launch : plan_cuda(problem, gpu_limits(device))) {
      expect_kernel(device, launch);
    }
  }
}

CudaOperand operand(const Tensor& t) {
  const bool kernels = t.dim() == 5;
  const auto stride = [&](int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); };
  // A single column counts as contiguous.
  return {reinterpret_cast<uint64_t>(t.data_ptr()), stride(0), stride(1),
          kernels ? stride(2) : 0, stride(kernels ? 3 : 2), t.size(-1) == 1 ? 1 : t.stride(-1)};
}

CudaProblem problem_of(Task task, const Tensor& source, const Tensor& kernel,
                       const Tensor& target, const Geometry& g) {
  const Tensor& x = task == Task::kGradInput ? target : source;
  const Tensor& kernels = task == Task::kGradWeight ? target : kernel;
  return {task, storage_of(source), operand(source), operand(kernel), operand(target),
          x.size(0), x.size(1), kernels.size(1),
          x.size(2), x.size(3), kernels.size(3), kernels.size(4),
          g.kernel[0], g.kernel[1], g.stride[0], g.stride[1], g.padding[0], g.padding[1],
          g.dilation[0], g.dilation[1], g.interleaved};
}

// A map in a layout that the fast kernels read: planar or channels-last. An expanded gradient, for
// example, has to be copied.
Tensor dense(const Tensor& map) {
  if (map.stride(3) == 1 || map.stride(1) == 1 || map.size(3) == 1) return map;
  return map.contiguous();
}

}  // namespace

void run_on_gpu(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                const Geometry& geometry) {
  const int64_t device = gpu_index(source);
  const Tensor map = dense(source);
  const Tensor kernels = task == Task::kGradWeight ? dense(kernel) : kernel;
  const CudaProblem problem = problem_of(task, map, kernels, target, geometry);
  const std::vector<CudaLaunch> launches = plan_cuda(problem, gpu_limits(device));
  if (task == Task::kForward) {
    for (const CudaLaunch& launch : launches) {
      if (!is_built(device, launch)) expect_gradients(device, problem);
    }
  }
  launch_on_gpu(device, launches);
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("set_cuda_tiles(str text) -> ()",
        [](std::string text) {
          try {
            mmcontext::set_cuda_tiles(text);
          } catch (const std::invalid_argument& error) {
            // torch 2.15 turns std::invalid_argument into a RuntimeError.
            TORCH_CHECK_VALUE(false, error.what());
          }
        });
}
