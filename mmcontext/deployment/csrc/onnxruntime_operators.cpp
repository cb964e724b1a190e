// The local aggregation as an onnxruntime operator, with the kernels of mmcontext/ops/csrc. A
// program registers the resulting library with its session; it needs neither torch nor Python.
#include <algorithm>
#include <array>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "onnxruntime_interface.h"
#include "plans.h"
#include "work.h"

namespace mmcontext {
namespace {

namespace ort = onnxruntime;

using Pair = std::array<int64_t, 2>;

// The context of the current call, for parallel_for.
struct Threads {
  const ort::Interface* interface;
  const ort::KernelContext* context;
};
thread_local Threads threads_of_call;

// Carries an error status from onnxruntime back to it.
struct Failure {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status != nullptr) throw Failure{status};
}

// Sizes and strides of an onnxruntime tensor, which is always contiguous.
struct Dense {
  std::vector<int64_t> sizes, strides;

  explicit Dense(std::vector<int64_t> of) : sizes(std::move(of)), strides(sizes.size(), 1) {
    for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  }

  View view(void* data) const {
    return {data, int64_t(sizes.size()), sizes.data(), strides.data()};
  }
};

struct Kernel {
  const ort::Interface& interface;
  Storage storage;
  Pair kernel, stride, padding, dilation;
  bool interleaved;

  Kernel(const ort::Interface& from, const ort::KernelInfo* info, Storage stored)
      : interface(from), storage(stored) {
    kernel = pair(info, "kernel_size");
    stride = pair(info, "stride");
    padding = pair(info, "padding");
    dilation = pair(info, "dilation");
    int64_t flag = 0;
    check(interface.integer(info, "interleaved", &flag));
    interleaved = flag != 0;
    for (int i = 0; i < 2; ++i) {
      if (kernel[i] < 1 || stride[i] < 1 || padding[i] < 0 || dilation[i] < 1) {
        throw std::invalid_argument("LocalAggregation: attributes are out of range");
      }
    }
  }

  Pair pair(const ort::KernelInfo* info, const char* name) const {
    Pair values{};
    size_t count = 2;
    check(interface.integers(info, name, values.data(), &count));
    if (count != 2) throw std::invalid_argument(std::string(name) + " must have two values");
    return values;
  }

  std::vector<int64_t> shape(const ort::Value* value) const {
    ort::TensorInfo* info = nullptr;
    check(interface.tensor_info(value, &info));
    const auto done = [this](ort::TensorInfo* t) { interface.release(t); };
    const std::unique_ptr<ort::TensorInfo, decltype(done)> owned(info, done);
    size_t count = 0;
    check(interface.dimensions(info, &count));
    std::vector<int64_t> sizes(count);
    check(interface.shape(info, sizes.data(), count));
    return sizes;
  }

  void* data(const ort::Value* value) const {
    void* pointer = nullptr;
    check(interface.data(const_cast<ort::Value*>(value), &pointer));
    return pointer;
  }

  void compute(ort::KernelContext* context) const {
    const ort::Value *x = nullptr, *w = nullptr;
    check(interface.input(context, 0, &x));
    check(interface.input(context, 1, &w));
    const Dense from(shape(x)), of(shape(w));
    std::vector<int64_t> to(4);
    if (from.sizes.size() == 4) {
      to = {from.sizes[0], from.sizes[1],
            out_size(from.sizes[2], kernel[0], stride[0], padding[0], dilation[0]),
            out_size(from.sizes[3], kernel[1], stride[1], padding[1], dilation[1])};
    }
    if (from.sizes.size() != 4 || of.sizes.size() != 5 || of.sizes[0] != to[0] ||
        of.sizes[1] < 1 || to[1] % of.sizes[1] != 0 || of.sizes[2] != kernel[0] * kernel[1] ||
        of.sizes[3] != to[2] || of.sizes[4] != to[3]) {
      throw std::invalid_argument("LocalAggregation: the shapes of x and w do not fit together");
    }
    ort::Value* y = nullptr;
    check(interface.output(context, 0, to.data(), to.size(), &y));
    const Dense result(to);
    threads_of_call = {&interface, context};
    run(Task::kForward, storage, from.view(data(x)), of.view(data(w)), result.view(data(y)),
        {kernel.data(), stride.data(), padding.data(), dilation.data(), interleaved});
  }
};

// Runs `work` and turns exceptions into the status that onnxruntime expects.
template <class Work> ort::Status* guarded(const ort::Interface& interface, const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return interface.create_status(ort::kInvalidArgument, error.what());
  }
}

template <ort::ElementType type, Storage storage> ort::CustomOperator make_operator() {
  using Self = const ort::CustomOperator*;
  ort::CustomOperator made{};
  made.version = ort::kVersion;
  made.name = [](Self) { return "LocalAggregation"; };
  made.provider = [](Self) -> const char* { return nullptr; };  // the CPU's
  made.input_type = [](Self, size_t) { return type; };
  made.inputs = [](Self) -> size_t { return 2; };
  made.output_type = [](Self, size_t) { return type; };
  made.outputs = [](Self) -> size_t { return 1; };
  made.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  made.input_kind = [](Self, size_t) { return 0; };
  made.output_kind = [](Self, size_t) { return 0; };
  made.input_memory = [](Self, size_t) { return 0; };
  made.create_or_fail = [](Self, const ort::Interface* interface, const ort::KernelInfo* info,
                           void** kernel) {
    return guarded(*interface, [&] { *kernel = new Kernel(*interface, info, storage); });
  };
  made.compute_or_fail = [](void* kernel, ort::KernelContext* context) {
    const auto& self = *static_cast<const Kernel*>(kernel);
    return guarded(self.interface, [&] { self.compute(context); });
  };
  made.first_version = [](Self) { return 1; };
  made.last_version = [](Self) { return 1; };
  return made;
}

}  // namespace

int64_t thread_count() {
  // Cached: reading it accesses the file system.
  static const int64_t count = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return count;
}

void parallel_for(int64_t units, const std::function<void(int64_t, int64_t)>& work) {
  struct Division {
    const std::function<void(int64_t, int64_t)>& work;
    int64_t units, parts;
  } division{work, units, std::min(units, 4 * thread_count())};
  check(threads_of_call.interface->parallel_for(
      threads_of_call.context,
      [](void* of, size_t i) {
        const auto& d = *static_cast<const Division*>(of);
        d.work(d.units * int64_t(i) / d.parts, d.units * int64_t(i + 1) / d.parts);
      },
      division.parts, &division));
}

}  // namespace mmcontext

// The entry point that onnxruntime's SessionOptions.register_custom_ops_library looks up.
extern "C" __attribute__((visibility("default"))) onnxruntime::Status* RegisterCustomOps(
    onnxruntime::SessionOptions* options, const onnxruntime::InterfaceBase* base) {
  namespace ort = onnxruntime;
  using mmcontext::Storage;
  const ort::Interface* interface = base->get(ort::kVersion);
  if (interface == nullptr) {
    return base->get(1)->create_status(
        ort::kFail, (std::string("mmcontext's operators need onnxruntime 1.17, this is ") +
                     base->version()).c_str());
  }
  static const ort::CustomOperator operators[] = {
      mmcontext::make_operator<ort::kFloat, Storage::kFloat>(),
      mmcontext::make_operator<ort::kFloat16, Storage::kHalf>(),
      mmcontext::make_operator<ort::kDouble, Storage::kDouble>()};
  // Never freed: sessions refer to it for as long as they live.
  static std::mutex mutex;
  static ort::Domain* domain = nullptr;
  return mmcontext::guarded(*interface, [&] {
    const std::lock_guard<std::mutex> lock(mutex);
    if (domain == nullptr) {
      ort::Domain* fresh = nullptr;
      mmcontext::check(interface->create_domain("mmcontext", &fresh));
      for (const auto& custom : operators) {
        mmcontext::check(interface->add_operator(fresh, &custom));
      }
      domain = fresh;
    }
    mmcontext::check(interface->add_domain(options, domain));
  });
}
