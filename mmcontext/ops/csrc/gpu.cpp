// Launches CUDA kernels. This needs no CUDA header to build and links no CUDA library: Python
// (ops/gpu_kernels.py) compiles the kernels and passes the addresses of the driver's functions;
// everything that is done on every call is done here.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gpu.h"

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
// The CPU, standing in for a GPU.
constexpr int64_t kHost = -1;

struct Gpu {
  std::string refusal;                     // why no kernel can run there
  CudaDevice limits{};
  void* context = nullptr;
  std::unordered_map<std::string, void*> functions;  // by source and defines
  std::shared_mutex mutex;                 // guards functions
};

Launch launch_kernel = nullptr, launch_on_host = nullptr;
CurrentStream current_stream = nullptr;
SetContext set_context = nullptr;

// The GPU with this index, prepared by Python on first use.
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
  // If another thread was faster, its object is kept.
  return *gpus.emplace(device, std::move(made)).first->second;
}

std::string key_of(const CudaLaunch& launch) { return launch.source + ' ' + launch.defines; }

// Null if the kernel has not been built.
void* known_function(Gpu& there, const CudaLaunch& launch) {
  std::shared_lock<std::shared_mutex> lock(there.mutex);
  const auto found = there.functions.find(key_of(launch));
  return found == there.functions.end() ? nullptr : found->second;
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
    TORCH_CHECK(error == 0, "torch cannot tell the current stream of GPU ", device);
    return stream;
  }
  // torch 2.1 has no such function.
  static const auto ask = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext_native::current_stream", "").typed<int64_t(int64_t)>();
  return reinterpret_cast<void*>(ask.call(device));
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
  TORCH_CHECK(error == 0, "the CUDA driver cannot launch ", one.source, " (", one.defines,
              "; grid ", one.grid[0], " x ", one.grid[1], " x ", one.grid[2], ", ", one.block,
              " threads, ", one.shared_bytes, " bytes of shared memory): error ", error);
}

void set_host_launcher(int64_t address) { launch_on_host = reinterpret_cast<Launch>(address); }

void forget_kernels(int64_t device) {
  Gpu& there = gpu(device);
  std::unique_lock<std::shared_mutex> lock(there.mutex);
  there.functions.clear();
}

}  // namespace

const std::string& gpu_refusal(int64_t device) { return gpu(device).refusal; }

int64_t gpu_index(const at::Tensor& t) { return t.is_cpu() ? kHost : t.get_device(); }

const CudaDevice& gpu_limits(int64_t device) { return gpu(device).limits; }

bool is_built(int64_t device, const CudaLaunch& launch) {
  return known_function(gpu(device), launch) != nullptr;
}

void expect_kernel(int64_t device, const CudaLaunch& launch) {
  using Expect = void(c10::string_view, c10::string_view, int64_t);
  static const auto expect = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext_native::expect_kernel", "").typed<Expect>();
  if (!is_built(device, launch)) expect.call(launch.source, launch.defines, device);
}

void launch_on_gpu(int64_t device, const std::vector<CudaLaunch>& launches) {
  const bool on_host = device == kHost;
  const c10::OptionalDeviceGuard guard(
      on_host ? c10::optional<c10::Device>()
              : c10::optional<c10::Device>(c10::Device(c10::DeviceType::CUDA,
                                                       static_cast<c10::DeviceIndex>(device))));
  Gpu& there = gpu(device);
  void* const stream = on_host ? nullptr : stream_of(device);
  for (const CudaLaunch& one : launches) {
    void* function = known_function(there, one);
    if (function == nullptr) function = build(there, device, one);
    launch(there, device, function, stream, one);
  }
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  // Implemented in Python. Returns why the GPU cannot be used, or its properties: capability,
  // multiprocessors, shared memory per block and per multiprocessor, its context, and the
  // addresses of cuLaunchKernel, cuCtxSetCurrent and aoti_torch_get_current_cuda_stream (or 0).
  m.def("prepare_gpu(int device) -> (str, int[])");
  m.def("build_kernel(str source, str defines, str entry, int device) -> int");
  m.def("expect_kernel(str source, str defines, int device) -> ()");
  m.def("current_stream(int device) -> int");
  m.def("gpu_refusal(int device) -> str",
        [](int64_t device) { return mmcontext::gpu_refusal(device); });
  m.def("forget_kernels(int device) -> ()", &mmcontext::forget_kernels);
  m.def("set_host_launcher(int address) -> ()", &mmcontext::set_host_launcher);
}
