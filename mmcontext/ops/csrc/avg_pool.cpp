// Average pooling of channels-last maps on a GPU, with its derivative (cuda/avg_pool.cu). The
// reference is in Python (ops/avg_pool).
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "cuda/avg_pool.cuh"
#include "gpu.h"
#include "gpu_maps.h"
#include "local_aggregation.h"
#include "work.h"

namespace mmcontext {
namespace {

using OptionalTensor = c10::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kSwitch = "MMCONTEXT_AVG_POOL";
constexpr int64_t kThreads = 256, kBlocks = 16, kMost = std::numeric_limits<int>::max();

struct Pool {
  std::vector<int64_t> kernel, stride, padding;
  bool ceil_mode, include_pad;

  int64_t out(int axis, int64_t size) const {
    const int64_t room = size + 2 * padding[axis] - kernel[axis], step = stride[axis];
    if (room < 0) return 0;
    int64_t count = (ceil_mode ? ceil_div(room, step) : room / step) + 1;
    // The last window has to begin inside the map or its left padding.
    if (ceil_mode && (count - 1) * step >= size + padding[axis]) --count;
    return count;
  }
};

void launch(const Pool& pool, bool back, const Tensor& source, const Tensor& target) {
  const Tensor &map = back ? target : source, &result = back ? source : target;
  AvgPoolParameters p{};
  p.source = address_of(source);
  p.target = address_of(target);
  p.vectors = static_cast<int>(map.size(1) * map.element_size() / 16);
  p.count = static_cast<int>(target.numel() * target.element_size() / 16);
  p.rows = static_cast<int>(map.size(2));
  p.cols = static_cast<int>(map.size(3));
  p.out_rows = static_cast<int>(result.size(2));
  p.out_cols = static_cast<int>(result.size(3));
  p.pad_h = static_cast<int>(pool.padding[0]);
  p.pad_w = static_cast<int>(pool.padding[1]);
  p.include_pad = pool.include_pad;
  const int64_t device = gpu_index(map);
  CudaLaunch one;
  one.source = "avg_pool.cu";
  one.entry = "avg_pool";
  one.defines = defines({{"PASS", back}, {"STORAGE", static_cast<int64_t>(storage_of(map))},
                         {"KERNEL_H", pool.kernel[0]}, {"KERNEL_W", pool.kernel[1]},
                         {"STRIDE_H", pool.stride[0]}, {"STRIDE_W", pool.stride[1]}});
  one.block = kThreads;
  one.grid[0] = static_cast<unsigned>(std::min<int64_t>(
      ceil_div(p.count, kThreads), gpu_limits(device).multiprocessors * kBlocks));
  one.grid[1] = one.grid[2] = 1;
  one.shared_bytes = 0;
  one.parameters = bytes_of(p);
  launch_on_gpu(device, {one});
}

Tensor forward(const Tensor& x, const Pool& pool) {
  Tensor y = empty_pixels({x.size(0), x.size(1), pool.out(0, x.size(2)), pool.out(1, x.size(3))}, x);
  launch(pool, false, x, y);
  return y;
}

struct Pooled : torch::autograd::Function<Pooled> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, at::IntArrayRef kernel,
                        at::IntArrayRef stride, at::IntArrayRef padding, bool ceil_mode,
                        bool include_pad) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["size"] = x.sizes().vec();
    ctx->saved_data["kernel"] = kernel.vec();
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["modes"] = std::vector<int64_t>{ceil_mode, include_pad};
    return mmcontext::forward(x, {kernel.vec(), stride.vec(), padding.vec(), ceil_mode,
                                  include_pad});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto ints = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const auto modes = ints("modes");
    const Pool pool{ints("kernel"), ints("stride"), ints("padding"), modes[0] != 0,
                    modes[1] != 0};
    Tensor of_x = empty_pixels(ints("size"), grads[0]);
    if (at::GradMode::is_enabled()) {
      of_x = at::avg_pool2d_backward(grads[0], of_x, pool.kernel, pool.stride, pool.padding,
                                     pool.ceil_mode, pool.include_pad, c10::nullopt);
    } else {
      launch(pool, true, dense_gradient(grads[0], of_x), of_x);
    }
    return {of_x, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::string refusal(const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                    at::IntArrayRef padding, bool ceil_mode, bool on_host) {
  std::string reason = map_refusal(x, on_host);
  if (!reason.empty()) return reason;
  const Pool pool{kernel.vec(), stride.vec(), padding.vec(), ceil_mode, true};
  int64_t elements = x.size(0) * x.size(1);
  for (int axis = 0; axis < 2; ++axis) {
    if (kernel[axis] < 1 || stride[axis] < 1 || padding[axis] < 0 ||
        2 * padding[axis] > kernel[axis] || pool.out(axis, x.size(2 + axis)) < 1) {
      return "the window is invalid; torch raises the error";
    }
    elements *= std::max(pool.out(axis, x.size(2 + axis)), x.size(2 + axis));
  }
  if (kernel[0] * kernel[1] > 9) return "the window has more than 9 pixels";
  // Vectors of 16 bytes are counted in 32 bits, with headroom for one step beyond the end.
  return elements * x.element_size() / 16 > kMost / 2 ? "the map is too large" : "";
}

// Nothing if the kernels do not support the call.
OptionalTensor avg_pool(const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                        at::IntArrayRef padding, bool ceil_mode, bool include_pad,
                        c10::string_view method) {
  const std::string chosen = chosen_method(kSwitch, method);
  if (chosen == "torch" ||
      !refusal(x, kernel, stride, padding, ceil_mode, chosen == "null").empty()) {
    return {};
  }
  if (wants_gradient({&x})) {
    return Pooled::apply(x, kernel, stride, padding, ceil_mode, include_pad);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return forward(x, {kernel.vec(), stride.vec(), padding.vec(), ceil_mode, include_pad});
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("avg_pool(Tensor x, int[2] kernel, int[2] stride, int[2] padding, bool ceil_mode, "
        "bool include_pad, str method) -> Tensor?");
  m.def("avg_pool_refusal(Tensor x, int[2] kernel, int[2] stride, int[2] padding, "
        "bool ceil_mode, bool on_host) -> str");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("avg_pool", &mmcontext::avg_pool);
  m.impl("avg_pool_refusal", &mmcontext::refusal);
}
