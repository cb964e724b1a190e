// Launches the CUDA kernels. No CUDA header is needed to build this and no CUDA library is
// linked: Python (local_aggregation/cuda.py) compiles the kernels and hands over the addresses
// of the driver's functions, and everything that happens at every call happens here.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_plan.h"
#include "local_aggregation.h"

namespace mmcontext {
namespace {

// cuLaunchKernel, aoti_torch_get_current_cuda_stream and cuCtxSetCurrent.
using Launch = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z,
                       unsigned shared_bytes, void* stream, void** parameters, void** extra);
using CurrentStream = int32_t (*)(int32_t device, void** stream);
using SetContext = int (*)(void* context);

// CUDA_ERROR_INVALID_CONTEXT: this thread has made no call to the CUDA runtime yet.
constexpr int kInvalidContext = 201;
// The CPU, standing for a GPU.
constexpr int64_t kHost = -1;

struct Gpu {
  std::string refusal;                     // why nothing can run there
  CudaDevice limits{};
  void* context = nullptr;
  std::unordered_map<std::string, void*> functions;  // by source and defines
  std::shared_mutex mutex;                 // of the functions
};

Launch launch_kernel = nullptr, launch_on_host = nullptr;
CurrentStream current_stream = nullptr;
SetContext set_context = nullptr;

// The GPU with this index, prepared by Python when it is asked for first.
Gpu& gpu(int64_t device) {
  static std::shared_mutex mutex;
  static std::map<int64_t, std::unique_ptr<Gpu>> gpus;
  {
    std::shared_lock<std::shared_mutex> lock(mutex);
    const auto found = gpus.find(device);
    if (found != gpus.end()) return *found->second;
  }
  using Prepare = std::tuple<std::string, std::vector<int64_t>>(int64_t);
  static const auto prepare = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext_native::prepare_gpu", "").typed<Prepare>();
  auto made = std::make_unique<Gpu>();
  std::vector<int64_t> facts;
  std::tie(made->refusal, facts) = prepare.call(device);
  if (made->refusal.empty()) {
    TORCH_INTERNAL_ASSERT(facts.size() == 8);
    made->limits = {static_cast<int>(facts[0]), static_cast<int>(facts[1]), facts[2], facts[3]};
    made->context = reinterpret_cast<void*>(facts[4]);
    if (device != kHost) {
      launch_kernel = reinterpret_cast<Launch>(facts[5]);
      set_context = reinterpret_cast<SetContext>(facts[6]);
      current_stream = reinterpret_cast<CurrentStream>(facts[7]);
    }
  }
  std::unique_lock<std::shared_mutex> lock(mutex);
  // Another thread may have been faster; what it made stays.
  return *gpus.emplace(device, std::move(made)).first->second;
}

std::string key_of(const CudaLaunch& launch) { return launch.source + ' ' + launch.defines; }

// Null where it has not been built.
void* known_function(Gpu& there, const CudaLaunch& launch) {
  std::shared_lock<std::shared_mutex> lock(there.mutex);
  const auto found = there.functions.find(key_of(launch));
  return found == there.functions.end() ? nullptr : found->second;
}

// Has the kernels of a new forward pass' gradients compiled behind it: the backward pass will
// ask for them next, laid out as the operands are.
void expect_gradients(Gpu& there, int64_t device, const CudaProblem& forward) {
  using Expect = void(c10::string_view, c10::string_view, int64_t);
  static const auto expect = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext_native::expect_kernel", "").typed<Expect>();
  CudaProblem of_x = forward, of_w = forward;
  of_x.task = Task::kGradInput;
  std::swap(of_x.source, of_x.target);
  of_w.task = Task::kGradWeight;
  std::swap(of_w.kernel, of_w.target);
  // The gradient of the kernels is written by rows.
  const int64_t row = forward.out_cols, tap = row * forward.out_rows;
  const int64_t group = tap * forward.kernel_h * forward.kernel_w;
  of_w.target = {forward.kernel.address, group * forward.groups, group, tap, row, 1};
  for (const CudaProblem& problem : {of_x, of_w}) {
    for (const CudaLaunch& launch : plan_cuda(problem, there.limits)) {
      if (known_function(there, launch) == nullptr) {
        expect.call(launch.source, launch.defines, device);
      }
    }
  }
}

void* build(Gpu& there, int64_t device, const CudaLaunch& launch) {
  using Build = int64_t(c10::string_view, c10::string_view, c10::string_view, int64_t);
  static const auto ask = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext_native::build_kernel", "").typed<Build>();
  void* const function = reinterpret_cast<void*>(
      ask.call(launch.source, launch.defines, launch.entry, device));
  std::unique_lock<std::shared_mutex> lock(there.mutex);
  return there.functions.emplace(key_of(launch), function).first->second;
}

void* stream_of(int64_t device) {
  void* stream = nullptr;
  if (current_stream != nullptr) {
    const int32_t error = current_stream(static_cast<int32_t>(device), &stream);
    TORCH_CHECK(error == 0, "torch does not tell the current stream of GPU ", device);
    return stream;
  }
  // torch 2.1 has no such function.
  static const auto ask = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext_native::current_stream", "").typed<int64_t(int64_t)>();
  return reinterpret_cast<void*>(ask.call(device));
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

void launch(Gpu& there, int64_t device, void* function, void* stream, const CudaLaunch& one) {
  void* arguments[] = {const_cast<char*>(one.parameters.data())};
  const Launch how = device == kHost ? launch_on_host : launch_kernel;
  if (how == nullptr) return;
  const auto go = [&] {
    return how(function, one.grid[0], one.grid[1], one.grid[2], one.block, 1, 1,
               one.shared_bytes, stream, arguments, nullptr);
  };
  int error = go();
  if (error == kInvalidContext && there.context != nullptr) {
    set_context(there.context);
    error = go();
  }
  TORCH_CHECK(error == 0, "the CUDA driver does not launch ", one.source, " (", one.defines,
              "; grid ", one.grid[0], " x ", one.grid[1], " x ", one.grid[2], ", ", one.block,
              " threads, ", one.shared_bytes, " bytes of shared memory): error ", error);
}

// A map that the fast kernels read: by planes or by pixels. An expanded gradient, say, is not.
Tensor dense(const Tensor& map) {
  if (map.stride(3) == 1 || map.stride(1) == 1 || map.size(3) == 1) return map;
  return map.contiguous();
}

void set_host_launcher(int64_t address) { launch_on_host = reinterpret_cast<Launch>(address); }

void forget_kernels(int64_t device) {
  Gpu& there = gpu(device);
  std::unique_lock<std::shared_mutex> lock(there.mutex);
  there.functions.clear();
}

}  // namespace

const std::string& gpu_refusal(int64_t device) { return gpu(device).refusal; }

void run_on_gpu(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                const Geometry& geometry) {
  const bool on_host = source.is_cpu();
  const int64_t device = on_host ? kHost : source.get_device();
  const c10::OptionalDeviceGuard guard(on_host ? c10::optional<c10::Device>()
                                               : c10::optional<c10::Device>(source.device()));
  Gpu& there = gpu(device);
  const Tensor map = dense(source);
  const Tensor kernels = task == Task::kGradWeight ? dense(kernel) : kernel;
  void* const stream = on_host ? nullptr : stream_of(device);
  const CudaProblem problem = problem_of(task, map, kernels, target, geometry);
  for (const CudaLaunch& one : plan_cuda(problem, there.limits)) {
    void* function = known_function(there, one);
    if (function == nullptr) {
      if (task == Task::kForward) expect_gradients(there, device, problem);
      function = build(there, device, one);
    }
    launch(there, device, function, stream, one);
  }
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  // Implemented in Python. The facts of a GPU: capability, multiprocessors, shared memory of a
  // block and of a multiprocessor, its context, and the addresses of cuLaunchKernel,
  // cuCtxSetCurrent and aoti_torch_get_current_cuda_stream (or 0).
  m.def("prepare_gpu(int device) -> (str, int[])");
  m.def("build_kernel(str source, str defines, str entry, int device) -> int");
  m.def("expect_kernel(str source, str defines, int device) -> ()");
  m.def("current_stream(int device) -> int");
  m.def("gpu_refusal(int device) -> str",
        [](int64_t device) { return mmcontext::gpu_refusal(device); });
  m.def("forget_kernels(int device) -> ()", &mmcontext::forget_kernels);
  m.def("set_host_launcher(int address) -> ()", &mmcontext::set_host_launcher);
  m.def("set_cuda_tiles(str text) -> ()",
        [](std::string text) {
          try {
            mmcontext::set_cuda_tiles(text);
          } catch (const std::invalid_argument& error) {
            // torch 2.15 makes a RuntimeError of it.
            TORCH_CHECK_VALUE(false, error.what());
          }
        });
}
