// The planner behind a C interface.
#include <cstring>
#include <stdexcept>

#include "cuda_plan.h"

namespace {

std::vector<mmcontext::CudaLaunch> launches;
std::vector<mmcontext::CudaTile> tiles;
std::string error;

// numbers: task, storage, three operands of six (address, batch, channel, tap, row, col), batch,
// channels, groups, sizes of x and y, kernel, stride, padding, dilation, interleaved; then the
// device's capability, multiprocessors, shared memory per block and per multiprocessor.
void read(const long long* numbers, mmcontext::CudaProblem& problem,
          mmcontext::CudaDevice& device) {
  problem.task = static_cast<mmcontext::Task>(*numbers++);
  problem.storage = static_cast<mmcontext::Storage>(*numbers++);
  for (mmcontext::CudaOperand* of : {&problem.source, &problem.kernel, &problem.target}) {
    of->address = static_cast<uint64_t>(*numbers++);
    for (int64_t* to : {&of->batch, &of->channel, &of->tap, &of->row, &of->col}) *to = *numbers++;
  }
  for (int64_t* to : {&problem.batch, &problem.channels, &problem.groups, &problem.in_rows,
                      &problem.in_cols, &problem.out_rows, &problem.out_cols, &problem.kernel_h,
                      &problem.kernel_w, &problem.stride_h, &problem.stride_w, &problem.pad_h,
                      &problem.pad_w, &problem.dilation_h, &problem.dilation_w}) {
    *to = *numbers++;
  }
  problem.interleaved = *numbers++ != 0;
  device = {static_cast<int>(numbers[0]), static_cast<int>(numbers[1]), numbers[2], numbers[3]};
}

}  // namespace

extern "C" int plan(const long long* numbers) {
  mmcontext::CudaProblem problem;
  mmcontext::CudaDevice device;
  read(numbers, problem, device);
  launches = mmcontext::plan_cuda(problem, device);
  return static_cast<int>(launches.size());
}

extern "C" int list_tiles(const long long* numbers) {
  mmcontext::CudaProblem problem;
  mmcontext::CudaDevice device;
  read(numbers, problem, device);
  tiles = mmcontext::cuda_tiles(problem, device);
  return static_cast<int>(tiles.size());
}

extern "C" const char* tile_line(int i) { return tiles[i].line.c_str(); }
extern "C" double tile_microseconds(int i) { return tiles[i].microseconds; }

extern "C" const char* launch_source(int i) { return launches[i].source.c_str(); }
extern "C" const char* launch_defines(int i) { return launches[i].defines.c_str(); }
extern "C" const char* launch_entry(int i) { return launches[i].entry.c_str(); }
extern "C" const char* launch_parameters(int i) { return launches[i].parameters.data(); }

// sizes: grid, block, bytes of shared memory, bytes of the parameter.
extern "C" void launch_sizes(int i, unsigned* sizes) {
  const mmcontext::CudaLaunch& of = launches[i];
  for (int axis = 0; axis < 3; ++axis) sizes[axis] = of.grid[axis];
  sizes[3] = of.block;
  sizes[4] = of.shared_bytes;
  sizes[5] = static_cast<unsigned>(of.parameters.size());
}

extern "C" const char* set_tiles(const char* text) {
  try {
    mmcontext::set_cuda_tiles(text);
  } catch (const std::invalid_argument& wrong) {
    error = wrong.what();
    return error.c_str();
  }
  return nullptr;
}
