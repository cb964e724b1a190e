// The local aggregation of channels-last maps on a GPU, split along channels into equal parts with
// separate kernels. Every part is read and written in place.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "gpu.h"
#include "gpu_maps.h"
#include "local_aggregation.h"
#include "work.h"

namespace mmcontext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Parts {
  std::vector<int64_t> kernel, stride, padding, dilation;
  bool interleaved;
  int64_t count;

  Geometry geometry() const { return {kernel, stride, padding, dilation, interleaved}; }
  Tensor part(const Tensor& t, int64_t index) const {
    const int64_t share = t.size(1) / count;
    return t.narrow(1, index * share, share);
  }
  void run(Task task, const Tensor& source, const Tensor& kernels, const Tensor& target) const {
    for (int64_t i = 0; i < count; ++i) {
      run_on_gpu(task, part(source, i), part(kernels, i), part(target, i), geometry());
    }
  }
  Tensor forward(const Tensor& x, const Tensor& w) const {
    Tensor y = empty_pixels({x.size(0), x.size(1), w.size(3), w.size(4)}, x);
    run(Task::kForward, x, w, y);
    return y;
  }
};

// The gradients by differentiable functions, for a gradient of gradients.
variable_list compose_backward(const Parts& parts, const Tensor& grad, const Tensor& x,
                               const Tensor& w) {
  using GradInput = Tensor(const Tensor&, const Tensor&, c10::SymIntArrayRef, IntArrayRef,
                           IntArrayRef, IntArrayRef, IntArrayRef, bool, c10::string_view);
  using GradWeight = Tensor(const Tensor&, const Tensor&, c10::SymInt, IntArrayRef, IntArrayRef,
                            IntArrayRef, IntArrayRef, bool, c10::string_view);
  auto& all = c10::Dispatcher::singleton();
  static const auto of_x = all.findSchemaOrThrow("mmcontext::local_aggregation_grad_input", "")
                               .typed<GradInput>();
  static const auto of_w = all.findSchemaOrThrow("mmcontext::local_aggregation_grad_weight", "")
                               .typed<GradWeight>();
  std::vector<Tensor> xs, ws;
  for (int64_t i = 0; i < parts.count; ++i) {
    const Tensor g = parts.part(grad, i), kernels = parts.part(w, i);
    xs.push_back(of_x.call(g, kernels, x.sym_sizes().slice(2), parts.kernel, parts.stride,
                           parts.padding, parts.dilation, parts.interleaved, ""));
    ws.push_back(of_w.call(g, parts.part(x, i), kernels.sym_size(1), parts.kernel, parts.stride,
                           parts.padding, parts.dilation, parts.interleaved, ""));
  }
  return {at::cat(xs, 1), at::cat(ws, 1)};
}

struct InParts : torch::autograd::Function<InParts> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w,
                        IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                        IntArrayRef dilation, bool interleaved, int64_t count) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, w});
    ctx->saved_data["kernel"] = kernel.vec();
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["interleaved"] = interleaved;
    ctx->saved_data["count"] = count;
    return Parts{kernel.vec(), stride.vec(), padding.vec(), dilation.vec(), interleaved, count}
        .forward(x, w);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list kept = ctx->get_saved_variables();
    const Tensor &x = kept[0], &w = kept[1];
    const auto ints = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const Parts parts{ints("kernel"), ints("stride"), ints("padding"), ints("dilation"),
                      ctx->saved_data["interleaved"].toBool(), ctx->saved_data["count"].toInt()};
    variable_list results(8);
    if (at::GradMode::is_enabled()) {
      const variable_list both = compose_backward(parts, grads[0], x, w);
      std::copy(both.begin(), both.end(), results.begin());
      return results;
    }
    const Tensor grad = dense_gradient(grads[0], x);
    if (ctx->needs_input_grad(0)) {
      results[0] = at::empty_like(x);
      parts.run(Task::kGradInput, grad, w, results[0]);
    }
    if (ctx->needs_input_grad(1)) {
      results[1] = at::empty_like(w, w.options(), at::MemoryFormat::Contiguous);
      parts.run(Task::kGradWeight, x, grad, results[1]);
    }
    return results;
  }
};

bool serves(const Tensor& x, const Tensor& w, c10::string_view backend) {
  return (backend == "null" || backend == "cuda" || backend.empty()) &&
         map_refusal(x, backend == "null").empty() && w.device() == x.device();
}

// Nothing if the kernels do not support the operands; the caller then splits the maps itself.
c10::optional<Tensor> in_parts(const Tensor& x, const Tensor& w, IntArrayRef kernel,
                               IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                               bool interleaved, int64_t count, c10::string_view backend) {
  if (!serves(x, w, backend)) return {};
  const auto out = [&](int axis) {
    return out_size(x.size(2 + axis), kernel[axis], stride[axis], padding[axis], dilation[axis]);
  };
  TORCH_CHECK_VALUE(count > 0 && w.dim() == 5 && w.size(0) == x.size(0) &&
                        w.size(1) % count == 0 && w.size(1) > 0 && x.size(1) % w.size(1) == 0 &&
                        w.size(2) == kernel[0] * kernel[1] && w.size(3) == out(0) &&
                        w.size(4) == out(1) && out(0) > 0 && out(1) > 0,
                    "w of shape ", w.sizes(), " does not go with x of shape ", x.sizes(),
                    " in ", count, " parts");
  const Tensor kernels = w.to(x.scalar_type());
  if (wants_gradient({&x, &kernels})) {
    return InParts::apply(x, kernels, kernel, stride, padding, dilation, interleaved, count);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return Parts{kernel.vec(), stride.vec(), padding.vec(), dilation.vec(), interleaved, count}
      .forward(x, kernels);
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("aggregation_in_parts(Tensor x, Tensor w, int[2] kernel, int[2] stride, int[2] padding, "
        "int[2] dilation, bool interleaved, int count, str backend) -> Tensor?");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("aggregation_in_parts", &mmcontext::in_parts);
}
