// Several convolutions of one map, concatenated in one channels-last result. Those with narrow
// groups write their slice of its channels, read theirs of its gradient, and accumulate into one
// gradient of x.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "gpu_maps.h"
#include "grouped_conv.h"

namespace mmcontext {
namespace {

using at::IntArrayRef;
using at::Tensor;
using at::TensorList;
using c10::string_view;
using Forward = Tensor(const Tensor&, TensorList, int64_t, IntArrayRef, IntArrayRef, IntArrayRef,
                       IntArrayRef, string_view);

const c10::TypedOperatorHandle<Forward>& forward_op() {
  static const auto op = c10::Dispatcher::singleton()
      .findSchemaOrThrow("mmcontext::grouped_pyramid", "").typed<Forward>();
  return op;
}

// Everything about a call except its tensors; one value per level.
struct Levels {
  int64_t stride;
  std::vector<int64_t> paddings, dilations, groups, direct;
  bool on_host;

  GroupedCall call(size_t level) const { return {stride, groups[level], on_host}; }
  bool is_direct(size_t level, const Tensor& x) const {
    return direct[level] && takes_grouped(x, on_host);
  }
};

struct LevelsHolder : torch::CustomClassHolder {
  explicit LevelsHolder(Levels levels) : levels(std::move(levels)) {}
  Levels levels;
};

Tensor standard(const Tensor& x, const Tensor& w, const Levels& all, size_t level) {
  const int64_t pad = all.paddings[level], dilation = all.dilations[level];
  return at::conv2d(x, w, {}, {all.stride, all.stride}, {pad, pad}, {dilation, dilation},
                    all.groups[level]);
}

std::array<Tensor, 2> standard_gradients(const Tensor& grad, const Tensor& x, const Tensor& w,
                                         const Levels& all, size_t level, bool want_x,
                                         bool want_w) {
  const int64_t pad = all.paddings[level], dilation = all.dilations[level];
  const int64_t stride[] = {all.stride, all.stride}, padding[] = {pad, pad};
  const int64_t dilations[] = {dilation, dilation}, none[] = {0, 0};
  auto grads = at::convolution_backward(grad, x, w, c10::nullopt, stride, padding, dilations,
                                        false, none, all.groups[level], {want_x, want_w, false});
  return {std::get<0>(grads), std::get<1>(grads)};
}

Tensor run(const Tensor& x, TensorList weights, const Levels& all) {
  int64_t channels = 0;
  for (const Tensor& w : weights) channels += w.size(0);
  Tensor y;
  int64_t first = 0;
  for (size_t level = 0; level < weights.size(); ++level) {
    const Tensor& w = weights[level];
    const bool direct = all.is_direct(level, x);
    const Tensor part = direct ? Tensor() : standard(x, w, all, level);
    if (!y.defined()) {
      const auto size = [&](int dim) {
        return direct ? (x.size(dim) - 1) / all.stride + 1 : part.size(dim);
      };
      y = empty_pixels({x.size(0), channels, size(2), size(3)}, x);
    }
    const Tensor target = y.narrow(1, first, w.size(0));
    if (!direct) {
      target.copy_(part);
    } else if (y.numel()) {
      run_grouped_map(GroupedTask::kForward, x, w, {}, target, all.call(level));
    }
    first += w.size(0);
  }
  return y;
}

Tensor forward(const Tensor& x, TensorList weights, int64_t stride, IntArrayRef paddings,
               IntArrayRef dilations, IntArrayRef groups, IntArrayRef direct,
               string_view method) {
  const size_t count = weights.size();
  TORCH_CHECK_VALUE(count > 0 && paddings.size() == count && dilations.size() == count &&
                        groups.size() == count && direct.size() == count && x.dim() == 4,
                    "grouped_pyramid needs a map [B, C, H, W] and a padding, dilation, number of "
                    "groups and choice for each of its ", count, " weights");
  int64_t first = 0;
  for (size_t level = 0; level < count; ++level) {
    const Tensor& w = weights[level];
    TORCH_CHECK_VALUE(w.dim() == 4 && groups[level] >= 1 &&
                          x.size(1) == w.size(1) * groups[level] &&
                          w.size(0) % groups[level] == 0 && w.scalar_type() == x.scalar_type() &&
                          w.device() == x.device(),
                      "weight ", level, " of shape ", w.sizes(), " and ", groups[level],
                      " groups does not go with x of shape ", x.sizes());
    TORCH_CHECK_VALUE(!direct[level] || (first % 8 == 0 && w.size(2) == w.size(3) &&
                                         paddings[level] == w.size(2) / 2 &&
                                         dilations[level] == 1),
                      "level ", level, " cannot be direct");
    first += w.size(0);
  }
  for (const int64_t is : direct) {
    TORCH_CHECK_VALUE(!is || first % 8 == 0, first, " channels are not a multiple of 8");
  }
  return run(x, weights, {stride, paddings.vec(), dilations.vec(), groups.vec(), direct.vec(),
                          method == "null"});
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Differentiable : torch::autograd::Function<Differentiable> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, TensorList weights,
                        const c10::intrusive_ptr<LevelsHolder>& holder) {
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list saved{x};
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["levels"] = c10::IValue::make_capsule(holder);
    const Levels& all = holder->levels;
    for (size_t level = 0; level < weights.size(); ++level) {
      if (all.is_direct(level, x)) {
        expect_grouped_gradients(x, weights[level], false, all.call(level));
      }
    }
    return forward_op().call(x, weights, all.stride, all.paddings, all.dilations, all.groups,
                             all.direct, all.on_host ? "null" : "");
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const auto capsule = ctx->saved_data["levels"].toCapsule();
    const Levels& all = static_cast<LevelsHolder*>(capsule.get())->levels;
    const bool want_x = ctx->needs_input_grad(0), standard_only = at::GradMode::is_enabled();
    variable_list result(saved.size() + 1);
    Tensor& grad_x = result[0];
    std::vector<size_t> direct;
    std::vector<Tensor> parts;
    int64_t first = 0;
    for (size_t level = 0; level + 1 < saved.size(); ++level) {
      const Tensor& w = saved[level + 1];
      parts.push_back(grads[0].narrow(1, first, w.size(0)));
      first += w.size(0);
      if (!standard_only && all.is_direct(level, x)) {
        direct.push_back(level);
        continue;
      }
      const auto some = standard_gradients(parts[level], x, w, all, level, want_x,
                                           ctx->needs_input_grad(level + 1));
      result[level + 1] = some[1];
      if (want_x) grad_x = grad_x.defined() ? grad_x + some[0] : some[0];
    }
    for (const size_t level : direct) {
      const Tensor& w = saved[level + 1];
      if (ctx->needs_input_grad(level + 1)) {
        result[level + 1] = grouped_grad_weight(parts[level], x, w, all.call(level));
      }
      if (!want_x) continue;
      const bool more = grad_x.defined();
      if (more) {
        grad_x = grad_x.contiguous(at::MemoryFormat::ChannelsLast);
      } else {
        grad_x = empty_pixels(x.sizes(), x);
      }
      if (grad_x.numel()) {
        run_grouped_map(GroupedTask::kGradInput, parts[level], w, {}, grad_x, all.call(level),
                        more);
      }
    }
    return result;
  }
};

Tensor forward_autograd(const Tensor& x, TensorList weights, int64_t stride,
                        IntArrayRef paddings, IntArrayRef dilations, IntArrayRef groups,
                        IntArrayRef direct, string_view method) {
  bool wanted = x.requires_grad();
  for (const Tensor& w : weights) wanted = wanted || w.requires_grad();
  if (!wanted || !at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_op().call(x, weights, stride, paddings, dilations, groups, direct, method);
  }
  Levels all{stride, paddings.vec(), dilations.vec(), groups.vec(), direct.vec(),
             method == "null"};
  return Differentiable::apply(x, weights, c10::make_intrusive<LevelsHolder>(std::move(all)));
}

Tensor forward_autocast(const Tensor& x, TensorList weights, int64_t stride,
                        IntArrayRef paddings, IntArrayRef dilations, IntArrayRef groups,
                        IntArrayRef direct, string_view method) {
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  std::vector<Tensor> cast;
  for (const Tensor& w : weights) cast.push_back(autocast_kept(w));
  return forward_op().call(autocast_kept(x), cast, stride, paddings, dilations, groups, direct,
                           method);
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_IMPL(mmcontext, CompositeExplicitAutograd, m) {
  m.impl("grouped_pyramid", &mmcontext::forward);
}

TORCH_LIBRARY_IMPL(mmcontext, Autograd, m) {
  m.impl("grouped_pyramid", &mmcontext::forward_autograd);
}

TORCH_LIBRARY_IMPL(mmcontext, AutocastCPU, m) {
  m.impl("grouped_pyramid", &mmcontext::forward_autocast);
}

TORCH_LIBRARY_IMPL(mmcontext, AutocastCUDA, m) {
  m.impl("grouped_pyramid", &mmcontext::forward_autocast);
}
