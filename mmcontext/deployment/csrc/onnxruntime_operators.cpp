// The local aggregation as an operator of onnxruntime, by the kernels of mmcontext/ops/csrc. A program
// registers the library that this makes with its session; neither torch nor Python is needed.
#include <algorithm>
#include <array>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "onnxruntime_interface.h"
#include "plans.h"
#include "work.h"

namespace mmcontext {
namespace {

namespace ort = onnxruntime;

using Pair = std::array<int64_t, 2>;

// What a call runs on, for parallel_for.
struct Threads {
  const ort::Interface* interface;
  const ort::KernelContext* context;
};
thread_local Threads threads_of_call;

// An error of onnxruntime's own, on its way back to it.
struct Failure {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status != nullptr) throw Failure{status};
}

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

  // Contiguous, of sizes [batch, channel or group, taps, rows, columns].
  Operand operand(const ort::Value* value, const std::array<int64_t, 5>& sizes) const {
    Operand o{};
    void* data = nullptr;
    check(interface.data(const_cast<ort::Value*>(value), &data));
    o.data = static_cast<char*>(data);
    o.begin = o.data;
    o.row = sizes[4];
    o.col = 1;
    o.tap = o.row * sizes[3];
    o.channel = o.tap * sizes[2];
    o.batch = o.channel * sizes[1];
    o.end = o.data + o.batch * sizes[0] * element_bytes();
    // As nothing is read across them.
    for (auto [stride, size] : {std::pair<int64_t*, int64_t>{&o.batch, sizes[0]},
                                {&o.channel, sizes[1]}, {&o.row, sizes[3]}}) {
      if (size == 1) *stride = 0;
    }
    return o;
  }

  int64_t element_bytes() const {
    return storage == Storage::kHalf ? 2 : storage == Storage::kFloat ? 4 : 8;
  }

  void compute(ort::KernelContext* context) const {
    const ort::Value *x = nullptr, *w = nullptr;
    check(interface.input(context, 0, &x));
    check(interface.input(context, 1, &w));
    const std::vector<int64_t> from = shape(x), of = shape(w);
    Aggregation call{};
    std::array<int64_t, 4> to{};
    if (from.size() == 4) {
      to = {from[0], from[1], out_size(from[2], kernel[0], stride[0], padding[0], dilation[0]),
            out_size(from[3], kernel[1], stride[1], padding[1], dilation[1])};
    }
    const int64_t taps = kernel[0] * kernel[1];
    if (from.size() != 4 || of.size() != 5 || of[0] != from[0] || of[1] < 1 ||
        from[1] % of[1] != 0 || of[2] != taps || of[3] != to[2] || of[4] != to[3]) {
      throw std::invalid_argument("LocalAggregation: the shapes of x and w do not fit together");
    }
    ort::Value* y = nullptr;
    check(interface.output(context, 0, to.data(), to.size(), &y));
    if (to[0] * to[1] * to[2] * to[3] == 0) return;
    call.task = Task::kForward;
    call.storage = storage;
    call.element_bytes = element_bytes();
    call.interleaved = interleaved;
    call.source = operand(x, {from[0], from[1], 1, from[2], from[3]});
    call.kernel = operand(w, {of[0], of[1], of[2], of[3], of[4]});
    call.target = operand(y, {to[0], to[1], 1, to[2], to[3]});
    call.batch = from[0];
    call.groups = of[1];
    call.shared = from[1] / of[1];
    call.group_step = interleaved ? 1 : call.shared;
    call.channel_step = interleaved ? call.groups : 1;
    call.src_rows = from[2];
    call.src_cols = from[3];
    call.ker_rows = call.out_rows = to[2];
    call.ker_cols = call.out_cols = to[3];
    call.kernel_h = kernel[0];
    call.kernel_w = kernel[1];
    call.stride_h = stride[0];
    call.stride_w = stride[1];
    call.pad_h = padding[0];
    call.pad_w = padding[1];
    call.dilation_h = dilation[0];
    call.dilation_w = dilation[1];
    threads_of_call = {&interface, context};
    run(call);
  }
};

// What onnxruntime's function returns for a piece of work.
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
  return std::max<int64_t>(1, std::thread::hardware_concurrency());
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

// What SessionOptions.register_custom_ops_library of onnxruntime looks for.
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
  // It belongs to the process: sessions refer to it as long as they live.
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
