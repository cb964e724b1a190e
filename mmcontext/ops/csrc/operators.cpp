// The operators of the local aggregation: checks, choice of a backend, derivatives, autocast.
// Their schemas, their fake kernels and the backends written in Python are in
// local_aggregation/*.py; a call that the compiled kernels serve does not enter Python.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <utility>
#include <vector>

#include "autocast.h"
#include "gpu.h"
#include "huge_pages.h"
#include "layout.h"
#include "local_aggregation.h"
#include "work.h"

namespace mmcontext {
namespace {

using c10::string_view;
using Forward = Tensor(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef,
                       IntArrayRef, bool, string_view);
using GradInput = Tensor(const Tensor&, const Tensor&, c10::SymIntArrayRef, IntArrayRef,
                         IntArrayRef, IntArrayRef, IntArrayRef, bool, string_view);
using GradWeight = Tensor(const Tensor&, const Tensor&, c10::SymInt, IntArrayRef, IntArrayRef,
                          IntArrayRef, IntArrayRef, bool, string_view);

template <class Signature> c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
const c10::TypedOperatorHandle<Forward>& forward_op() {
  static const auto op = find<Forward>("mmcontext::local_aggregation");
  return op;
}
const c10::TypedOperatorHandle<GradInput>& grad_input_op() {
  static const auto op = find<GradInput>("mmcontext::local_aggregation_grad_input");
  return op;
}
const c10::TypedOperatorHandle<GradWeight>& grad_weight_op() {
  static const auto op = find<GradWeight>("mmcontext::local_aggregation_grad_weight");
  return op;
}

// Which backend serves a call: 'native', 'cuda', or one of those in Python, which also report
// what is wrong with operands that no backend supports. 'null' prepares a launch on a GPU but does
// not make it.
enum class Served { kCpu, kGpu, kPython };

Served served_by(const Tensor& a, const Tensor& b, string_view backend) {
  if (a.scalar_type() != b.scalar_type() || a.device() != b.device() ||
      !has_storage(a.scalar_type())) {
    return Served::kPython;
  }
  if (a.is_cpu()) {
    if (backend.empty() || backend == "native") return Served::kCpu;
    if (backend == "null") return Served::kGpu;
  } else if (a.is_cuda() && (backend.empty() || backend == "cuda") &&
             gpu_refusal(a.get_device()).empty()) {
    return Served::kGpu;
  }
  return Served::kPython;
}

struct Sizes {
  IntArrayRef x;                           // batch, channels, rows, columns
  int64_t groups, taps, out_rows, out_cols;
};

// Guards against reads and writes beyond a tensor. The Python functions have checked their
// arguments before, with better messages.
void check_sizes(const Sizes& s, const Geometry& g, const Tensor& map, const Tensor& kernels) {
  const IntArrayRef pairs[] = {g.kernel, g.stride, g.padding, g.dilation};
  for (int i = 0; i < 4; ++i) {
    const int64_t least = i == 2 ? 0 : 1;
    TORCH_CHECK_VALUE(pairs[i].size() == 2 && pairs[i][0] >= least && pairs[i][1] >= least,
                      "kernel_size, stride, padding and dilation must be two ints of at least "
                      "1 (padding 0), got ", pairs[i]);
  }
  TORCH_CHECK_VALUE(s.x.size() == 4 && s.groups > 0 && s.x[1] % s.groups == 0 &&
                        s.taps == g.kernel[0] * g.kernel[1],
                    "x of shape ", s.x, " does not go with ", s.groups, " groups of ", s.taps,
                    " taps and kernel_size ", g.kernel);
  const int64_t out[] = {s.out_rows, s.out_cols};
  for (int i = 0; i < 2; ++i) {
    TORCH_CHECK_VALUE(out[i] > 0 && out[i] == out_size(s.x[2 + i], g.kernel[i], g.stride[i],
                                                       g.padding[i], g.dilation[i]),
                      "an output of ", s.out_rows, " x ", s.out_cols, " does not follow from x "
                      "of shape ", s.x);
  }
  if (map.defined()) {
    TORCH_CHECK_VALUE(map.sizes() == IntArrayRef({s.x[0], s.x[1], out[0], out[1]}),
                      "the gradient of the output has the shape ", map.sizes());
  }
  if (kernels.defined()) {
    TORCH_CHECK_VALUE(
        kernels.sizes() == IntArrayRef({s.x[0], s.groups, s.taps, out[0], out[1]}),
        "w has the shape ", kernels.sizes(), " beside x of shape ", s.x);
  }
}

Tensor empty_feature(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  Tensor fresh = at::empty({like.size(0), channels, height, width},
                           like.options().memory_format(layout_of(like)));
  return like.is_cpu() ? on_huge_pages(std::move(fresh)) : fresh;
}

void run(Served where, Task task, const Tensor& source, const Tensor& kernel,
         const Tensor& target, const Geometry& geometry) {
  if (target.numel() == 0) return;
  (where == Served::kCpu ? run_on_cpu : run_on_gpu)(task, source, kernel, target, geometry);
}

Tensor forward(const Tensor& x, const Tensor& w, IntArrayRef kernel, IntArrayRef stride,
               IntArrayRef padding, IntArrayRef dilation, bool interleaved,
               string_view backend) {
  const Served where = served_by(x, w, backend);
  if (where == Served::kPython) {
    static const auto chosen = find<Forward>("mmcontext_native::local_aggregation");
    return chosen.call(x, w, kernel, stride, padding, dilation, interleaved, backend);
  }
  const Geometry geometry{kernel, stride, padding, dilation, interleaved};
  TORCH_CHECK_VALUE(w.dim() == 5, "w must be [B, G, Kh*Kw, Ho, Wo], got shape ", w.sizes());
  check_sizes({x.sizes(), w.size(1), w.size(2), w.size(3), w.size(4)}, geometry, {}, w);
  Tensor y = empty_feature(x, x.size(1), w.size(3), w.size(4));
  run(where, Task::kForward, x, w, y, geometry);
  return y;
}

Tensor grad_input(const Tensor& grad, const Tensor& w, c10::SymIntArrayRef input_size,
                  IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                  IntArrayRef dilation, bool interleaved, string_view backend) {
  const Served where = served_by(grad, w, backend);
  if (where == Served::kPython) {
    static const auto chosen = find<GradInput>("mmcontext_native::local_aggregation_grad_input");
    return chosen.call(grad, w, input_size, kernel, stride, padding, dilation, interleaved,
                       backend);
  }
  const Geometry geometry{kernel, stride, padding, dilation, interleaved};
  const IntArrayRef size = C10_AS_INTARRAYREF_SLOW(input_size);
  TORCH_CHECK_VALUE(grad.dim() == 4 && w.dim() == 5 && size.size() == 2,
                    "grad must be [B, C, Ho, Wo], w [B, G, Kh*Kw, Ho, Wo] and input_size two "
                    "ints, got ", grad.sizes(), ", ", w.sizes(), " and ", size);
  const int64_t shape[] = {grad.size(0), grad.size(1), size[0], size[1]};
  check_sizes({shape, w.size(1), w.size(2), w.size(3), w.size(4)}, geometry, grad, w);
  Tensor x = empty_feature(grad, grad.size(1), size[0], size[1]);
  run(where, Task::kGradInput, grad, w, x, geometry);
  return x;
}

Tensor grad_weight(const Tensor& grad, const Tensor& x, c10::SymInt groups, IntArrayRef kernel,
                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                   bool interleaved, string_view backend) {
  const Served where = served_by(grad, x, backend);
  if (where == Served::kPython) {
    static const auto chosen = find<GradWeight>("mmcontext_native::local_aggregation_grad_weight");
    return chosen.call(grad, x, groups, kernel, stride, padding, dilation, interleaved, backend);
  }
  const Geometry geometry{kernel, stride, padding, dilation, interleaved};
  const int64_t count = groups.guard_int(__FILE__, __LINE__);
  TORCH_CHECK_VALUE(grad.dim() == 4 && kernel.size() == 2,
                    "grad must be [B, C, Ho, Wo], got shape ", grad.sizes());
  const int64_t taps = kernel[0] * kernel[1];
  check_sizes({x.sizes(), count, taps, grad.size(2), grad.size(3)}, geometry, grad, {});
  // The CUDA kernels write them row-major, whatever the layout of the maps.
  Tensor w = where == Served::kGpu
                 ? at::empty({x.size(0), count, taps, grad.size(2), grad.size(3)}, x.options())
                 : empty_feature(x, count * taps, grad.size(2), grad.size(3))
                       .unflatten(1, {count, taps});
  run(where, Task::kGradWeight, x, grad, w, geometry);
  return w;
}

// Everything about a call except its tensors, saved for the backward pass.
struct Options {
  std::vector<int64_t> kernel, stride, padding, dilation;
  bool interleaved;
  std::string backend;
};

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// The aggregation is bilinear: each operator's derivatives are the other two.
enum class Kind { kForward, kGradInput, kGradWeight };

struct Call {
  Kind kind;
  Options options;
  std::vector<c10::SymInt> input_size;
  c10::SymInt groups;

  Tensor forward(const Tensor& x, const Tensor& w) const {
    return forward_op().call(x, w, options.kernel, options.stride, options.padding,
                             options.dilation, options.interleaved, options.backend);
  }
  Tensor grad_input(const Tensor& grad, const Tensor& w, c10::SymIntArrayRef size) const {
    return grad_input_op().call(grad, w, size, options.kernel, options.stride, options.padding,
                                options.dilation, options.interleaved, options.backend);
  }
  Tensor grad_weight(const Tensor& grad, const Tensor& x, c10::SymInt count) const {
    return grad_weight_op().call(grad, x, std::move(count), options.kernel, options.stride,
                                 options.padding, options.dilation, options.interleaved,
                                 options.backend);
  }
  Tensor operator()(const Tensor& a, const Tensor& b) const {
    switch (kind) {
      case Kind::kForward: return forward(a, b);
      case Kind::kGradInput: return grad_input(a, b, input_size);
      default: return grad_weight(a, b, groups);
    }
  }
  // Gradients of (a, b) for the cotangent `g` of the result; only those that are needed.
  variable_list backward(const Tensor& g, const Tensor& a, const Tensor& b, bool want_a,
                         bool want_b) const {
    variable_list grads(2);
    switch (kind) {
      case Kind::kForward:  // a = x, b = w
        if (want_a) grads[0] = grad_input(g, b, a.sym_sizes().slice(2));
        if (want_b) grads[1] = grad_weight(g, a, b.sym_size(1));
        break;
      case Kind::kGradInput:  // a = grad, b = w
        if (want_a) grads[0] = forward(g, b);
        if (want_b) grads[1] = grad_weight(a, g, b.sym_size(1));
        break;
      case Kind::kGradWeight:  // a = grad, b = x
        if (want_a) grads[0] = forward(b, g);
        if (want_b) grads[1] = grad_input(a, g, b.sym_sizes().slice(2));
        break;
    }
    return grads;
  }
};

struct CallHolder : torch::CustomClassHolder {
  explicit CallHolder(Call call) : call(std::move(call)) {}
  Call call;
};

struct Differentiable : torch::autograd::Function<Differentiable> {
  static Tensor forward(AutogradContext* ctx, const Tensor& a, const Tensor& b,
                        const c10::intrusive_ptr<CallHolder>& holder) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({a, b});
    ctx->saved_data["call"] = c10::IValue::make_capsule(holder);
    return holder->call(a, b);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const Call& call = static_cast<CallHolder*>(capsule.get())->call;
    variable_list result = call.backward(grads[0], saved[0], saved[1],
                                         ctx->needs_input_grad(0), ctx->needs_input_grad(1));
    result.emplace_back();
    return result;
  }
};

Tensor differentiable(Kind kind, const Tensor& a, const Tensor& b, c10::SymIntArrayRef input_size,
                      c10::SymInt groups, IntArrayRef kernel, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, bool interleaved,
                      string_view backend) {
  Call call{kind,
            {kernel.vec(), stride.vec(), padding.vec(), dilation.vec(), interleaved,
             std::string(backend)},
            input_size.vec(),
            std::move(groups)};
  if (!at::GradMode::is_enabled() || !(a.requires_grad() || b.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call(a, b);
  }
  return Differentiable::apply(a, b, c10::make_intrusive<CallHolder>(std::move(call)));
}

Tensor forward_autograd(const Tensor& x, const Tensor& w, IntArrayRef kernel, IntArrayRef stride,
                        IntArrayRef padding, IntArrayRef dilation, bool interleaved,
                        string_view backend) {
  return differentiable(Kind::kForward, x, w, {}, 0, kernel, stride, padding, dilation,
                        interleaved, backend);
}
Tensor grad_input_autograd(const Tensor& grad, const Tensor& w, c10::SymIntArrayRef input_size,
                           IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                           IntArrayRef dilation, bool interleaved, string_view backend) {
  return differentiable(Kind::kGradInput, grad, w, input_size, 0, kernel, stride, padding,
                        dilation, interleaved, backend);
}
Tensor grad_weight_autograd(const Tensor& grad, const Tensor& x, c10::SymInt groups,
                            IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                            IntArrayRef dilation, bool interleaved, string_view backend) {
  return differentiable(Kind::kGradWeight, grad, x, {}, std::move(groups), kernel, stride,
                        padding, dilation, interleaved, backend);
}

// Casts the operands to autocast's dtype, except float64.
Tensor forward_autocast(const Tensor& x, const Tensor& w, IntArrayRef kernel, IntArrayRef stride,
                        IntArrayRef padding, IntArrayRef dilation, bool interleaved,
                        string_view backend) {
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  const bool leave = x.scalar_type() == at::kDouble || w.scalar_type() == at::kDouble;
  const auto cast = [&](const Tensor& t) {
    return leave ? t : t.to(autocast_type(t.device().type()));
  };
  return forward_op().call(cast(x), cast(w), kernel, stride, padding, dilation, interleaved,
                           backend);
}

}  // namespace
}  // namespace mmcontext

#define GEOMETRY                                                                       \
  "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool interleaved, " \
  "str backend"

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  // The same operators, served by the backends in Python.
  m.def("local_aggregation(Tensor x, Tensor w, " GEOMETRY ") -> Tensor");
  m.def("local_aggregation_grad_input(Tensor grad, Tensor w, SymInt[] input_size, " GEOMETRY ") -> Tensor");
  m.def("local_aggregation_grad_weight(Tensor grad, Tensor x, SymInt groups, " GEOMETRY ") -> Tensor");
}

TORCH_LIBRARY_IMPL(mmcontext, CompositeExplicitAutograd, m) {
  m.impl("local_aggregation", &mmcontext::forward);
  m.impl("local_aggregation_grad_input", &mmcontext::grad_input);
  m.impl("local_aggregation_grad_weight", &mmcontext::grad_weight);
}

TORCH_LIBRARY_IMPL(mmcontext, Autograd, m) {
  m.impl("local_aggregation", &mmcontext::forward_autograd);
  m.impl("local_aggregation_grad_input", &mmcontext::grad_input_autograd);
  m.impl("local_aggregation_grad_weight", &mmcontext::grad_weight_autograd);
}

TORCH_LIBRARY_IMPL(mmcontext, AutocastCPU, m) {
  m.impl("local_aggregation", &mmcontext::forward_autocast);
}

TORCH_LIBRARY_IMPL(mmcontext, AutocastCUDA, m) {
  m.impl("local_aggregation", &mmcontext::forward_autocast);
}
