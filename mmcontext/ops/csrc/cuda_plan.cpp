#include "cuda_plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/parameters.cuh"

namespace mmcontext {
namespace {

DeviceOperand on_device(const CudaOperand& of) {
  return {of.address, of.batch, of.channel, of.tap, of.row, of.col};
}

template <class Parameters> std::vector<char> bytes_of(const Parameters& parameters) {
  const char* begin = reinterpret_cast<const char*>(&parameters);
  return {begin, begin + sizeof parameters};
}

CudaLaunch general(const CudaProblem& p, const CudaDevice& device) {
  GeneralParameters to{};
  to.source = on_device(p.source);
  to.kernel = on_device(p.kernel);
  to.target = on_device(p.target);
  const bool to_x = p.task == Task::kGradInput;
  to.count = p.batch * (to_x ? p.in_rows * p.in_cols : p.out_rows * p.out_cols) *
             (p.task == Task::kGradWeight ? p.groups * p.kernel_h * p.kernel_w : p.channels);
  const int64_t fastest = p.task == Task::kGradWeight ? p.target.tap : p.target.channel;
  to.channels_last = fastest < p.target.col;
  const int64_t sizes[] = {p.channels, p.groups, to.channels_last, p.in_rows, p.in_cols,
                           p.out_rows, p.out_cols, p.kernel_h, p.kernel_w, p.stride_h, p.stride_w,
                           p.pad_h, p.pad_w, p.dilation_h, p.dilation_w, p.interleaved};
  int* const places[] = {&to.channels, &to.groups, &to.channels_last, &to.in_rows, &to.in_cols,
                         &to.out_rows, &to.out_cols, &to.kernel_h, &to.kernel_w, &to.stride_h,
                         &to.stride_w, &to.pad_h, &to.pad_w, &to.dilation_h, &to.dilation_w,
                         &to.interleaved};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) *places[i] = static_cast<int>(sizes[i]);
  CudaLaunch launch;
  launch.source = "general.cu";
  launch.defines = "-DSTORAGE=" + std::to_string(static_cast<int>(p.storage)) +
                   " -DTASK=" + std::to_string(static_cast<int>(p.task));
  launch.entry = "aggregate_general";
  launch.block = 256;
  // Threads take several elements each beyond 64 blocks a multiprocessor.
  launch.grid[0] = static_cast<unsigned>(
      std::min<int64_t>((to.count + 255) / 256, int64_t(device.multiprocessors) * 64));
  launch.grid[1] = launch.grid[2] = 1;
  launch.shared_bytes = 0;
  launch.parameters = bytes_of(to);
  return launch;
}

}  // namespace

std::vector<CudaLaunch> plan_cuda(const CudaProblem& problem, const CudaDevice& device) {
  return {general(problem, device)};
}

void set_cuda_tiles(const std::string&) {}

}  // namespace mmcontext
