// Gates of channels on a GPU, with their derivatives (cuda/channel_gate.cu): maps scaled image by
// image by what is made of their means. Python (ops/channel_gate) has the reference.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/channel_gate.cuh"
#include "gpu.h"
#include "gpu_maps.h"
#include "local_aggregation.h"
#include "work.h"

namespace mmcontext {
namespace {

using OptionalTensor = c10::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum class Pass { kSums, kMeans, kResult, kGradientSums, kGradientOfFactor, kGradient };
enum Gate { kFactor, kSigmoid, kSoftmax };

constexpr const char* kSwitch = "MMCONTEXT_CHANNEL_GATE";
constexpr int64_t kThreads = 256;
// Blocks of a multiprocessor in passes that leave sums, and in those that write maps.
constexpr int64_t kSummingBlocks = 4, kWritingBlocks = 12;

// Maps of one kind; the second may be undefined.
struct Maps { Tensor x, other; };

struct Form { int storage, factor, gate; bool other; };

// How the maps are divided among blocks.
struct Division { int64_t lanes, tiles, blocks; };

Division divide(const Tensor& x, bool sums) {
  const int64_t vectors = x.size(1) * x.element_size() / 16, pixels = x.size(2) * x.size(3);
  const int64_t lanes = std::min<int64_t>(vectors, 32), tiles = ceil_div(vectors, lanes);
  const int64_t turns = ceil_div(pixels, kThreads / lanes);
  const int64_t wanted = gpu_limits(gpu_index(x)).multiprocessors *
                         (sums ? kSummingBlocks : kWritingBlocks) / (tiles * x.size(0));
  // Another launch to add up takes longer than a few turns more.
  const int64_t most = sums && turns <= 32 ? 1 : ceil_div(turns, 4);
  return {lanes, tiles, std::max<int64_t>(1, std::min(wanted, most))};
}

// Passes over one pair of maps: their parameters, and launches in order.
class Passes {
 public:
  Passes(const Maps& maps, int factor, Gate gate)
      : of_(maps.x), form_{static_cast<int>(storage_of(maps.x)), factor, gate,
                           maps.other.defined()} {
    p.x = address_of(maps.x);
    p.other = address_of(maps.other);
    p.batch = static_cast<int>(of_.size(0));
    p.channels = static_cast<int>(of_.size(1));
    p.pixels = of_.size(2) * of_.size(3);
  }

  // One launch, or two where an image takes several blocks.
  void add_sums(Pass pass) {
    const Division division = divide(of_, true);
    if (division.blocks > 1) {
      partial_ = at::empty({division.blocks, of_.size(0), of_.size(1)},
                           at::TensorOptions().dtype(at::kFloat).device(of_.device()));
      p.partial = address_of(partial_);
      p.partials = static_cast<int>(division.blocks);
    }
    add(pass, division, division.blocks == 1);
    if (division.blocks == 1) return;
    CudaLaunch& launch = add(pass == Pass::kSums ? Pass::kMeans : Pass::kGradientOfFactor,
                             division, false);
    launch.grid[0] = static_cast<unsigned>(ceil_div(of_.size(0) * of_.size(1), kThreads));
    launch.grid[1] = launch.grid[2] = 1;
    launch.shared_bytes = 0;
  }

  void add_maps(Pass pass) { add(pass, divide(of_, false), false); }

  void run() { launch_on_gpu(gpu_index(of_), launches_); }

  ChannelGateParameters p{};

 private:
  CudaLaunch& add(Pass pass, const Division& division, bool whole) {
    p.lanes = static_cast<int>(division.lanes);
    // What a pass does not depend on makes no kernels of its own.
    const bool sums = pass == Pass::kSums || pass == Pass::kMeans;
    const bool pair = form_.other && pass != Pass::kMeans && pass != Pass::kGradientOfFactor;
    CudaLaunch launch;
    launch.source = "channel_gate.cu";
    launch.entry = "channel_gate";
    launch.defines = defines({{"PASS", static_cast<int64_t>(pass)}, {"STORAGE", form_.storage},
                              {"FACTOR", form_.factor}, {"OTHER", pair},
                              {"GATE", sums ? kFactor : form_.gate}, {"WHOLE", whole},
                              {"THREADS", kThreads}});
    launch.block = kThreads;
    launch.grid[0] = static_cast<unsigned>(division.tiles);
    launch.grid[1] = static_cast<unsigned>(division.blocks);
    launch.grid[2] = static_cast<unsigned>(of_.size(0));
    launch.shared_bytes = static_cast<unsigned>(
        pass == Pass::kSums || pass == Pass::kGradientSums
            ? kThreads * 16 / of_.element_size() * sizeof(float) : 0);
    launch.parameters = bytes_of(p);
    launches_.push_back(launch);
    return launches_.back();
  }

  Tensor of_, partial_;
  Form form_;
  std::vector<CudaLaunch> launches_;
};

int storage_code(const Tensor& t) { return static_cast<int>(storage_of(t)); }

Gate gate_of(const Maps& maps) { return maps.other.defined() ? kSoftmax : kSigmoid; }

Tensor means_of(const Maps& maps, at::ScalarType type, double scale) {
  Tensor means = at::empty({maps.x.size(0), maps.x.size(1), 1, 1},
                           maps.x.options().dtype(type));
  Passes passes(maps, storage_code(means), kFactor);
  passes.p.means = address_of(means);
  passes.p.scale = static_cast<float>(scale);
  passes.add_sums(Pass::kSums);
  passes.run();
  return means;
}

Tensor result_of(const Maps& maps, const Tensor& factor, Gate gate) {
  Tensor y = at::empty_like(maps.x);
  Passes passes(maps, storage_code(factor), gate);
  passes.p.factor = address_of(factor);
  passes.p.y = address_of(y);
  passes.add_maps(Pass::kResult);
  passes.run();
  return y;
}

Tensor gradient_of_factor(const Maps& maps, const Tensor& grad, const Tensor& factor, Gate gate) {
  Tensor result = at::empty_like(factor);
  Passes passes(maps, storage_code(factor), gate);
  passes.p.grad = address_of(grad);
  passes.p.factor = address_of(factor);
  passes.p.grad_factor = address_of(result);
  passes.add_sums(Pass::kGradientSums);
  passes.run();
  return result;
}

// Gradients of x and, with `other`, of the other map; grad_means may be undefined.
Maps gradients_of_maps(const Tensor& grad, bool other, const Tensor& factor, Gate gate,
                       const Tensor& grad_means, double scale, bool want_x, bool want_other) {
  Maps result;
  if (want_x) result.x = at::empty_like(grad);
  if (want_other) result.other = at::empty_like(grad);
  Passes passes({grad, other ? grad : Tensor()}, storage_code(factor), gate);
  passes.p.grad = address_of(grad);
  passes.p.factor = address_of(factor);
  passes.p.grad_means = address_of(grad_means);
  passes.p.scale = static_cast<float>(scale);
  passes.p.grad_x = address_of(result.x);
  passes.p.grad_other = address_of(result.other);
  passes.add_maps(Pass::kGradient);
  passes.run();
  return result;
}

// s [B, C, 1, 1] of logits, by functions that have derivatives.
Tensor composed_scale(const Tensor& logits, const Tensor& x, bool other) {
  if (!other) return logits.view({x.size(0), x.size(1), 1, 1}).sigmoid();
  const Tensor pairs = logits.view({x.size(0), x.size(1), 2});
  return (pairs.select(2, 0) - pairs.select(2, 1)).sigmoid().unsqueeze(2).unsqueeze(3);
}

double share(at::IntArrayRef size) { return 1. / static_cast<double>(size[2] * size[3]); }

// A tensor of its own over the same memory, of which a change in place is noticed for both.
Tensor same(const Tensor& t) {
  Tensor other = at::alias(t);
  other.unsafeGetTensorImpl()->set_version_counter(t.unsafeGetTensorImpl()->version_counter());
  return other;
}

// Means of maps, and the maps themselves: what comes back as the gradient of those is that of
// the gated result where Gated found this node behind its operands, so that one pass makes the
// gradients of the maps by both ways. With a gradient of gradients asked for it is their own, and
// Gated computes with the maps that this node has kept.
struct Means : torch::autograd::Function<Means> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x,
                               const OptionalTensor& other) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Maps maps{x, given(other)};
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, maps.other});
    ctx->saved_data["size"] = x.sizes().vec();
    variable_list results{means_of(maps, x.scalar_type(), share(x.sizes())), same(x)};
    if (maps.other.defined()) results.push_back(same(maps.other));
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto size = ctx->saved_data["size"].toIntVector();
    const auto logits = ctx->saved_data.find("logits");
    const bool other = grads.size() > 2;
    const double scale = share(size);
    if (logits != ctx->saved_data.end() && grads[1].defined() && !at::GradMode::is_enabled()) {
      const Tensor& grad = grads[1];
      const Tensor of_means = grads[0].defined() ? grads[0].to(grad.scalar_type()).contiguous()
                                                 : Tensor();
      const Maps of = gradients_of_maps(grad, other, logits->second.toTensor(),
                                        other ? kSoftmax : kSigmoid, of_means, scale,
                                        ctx->needs_input_grad(0),
                                        other && ctx->needs_input_grad(1));
      return {of.x, of.other};
    }
    variable_list results(2);
    for (size_t i = 1; i < grads.size(); ++i) {
      Tensor& result = results[i - 1];
      result = grads[i];
      if (!grads[0].defined()) continue;
      const Tensor by_means = (grads[0] * scale).expand(size);
      result = result.defined() ? result + by_means : by_means;
    }
    return results;
  }
};

using MeansNode = torch::autograd::CppNode<Means>;

// The node of Means whose results the operands are; null for others.
MeansNode* means_behind(const Maps& maps) {
  const auto result_of_means = [](const Tensor& t, uint32_t number) -> MeansNode* {
    return t.output_nr() == number ? dynamic_cast<MeansNode*>(t.grad_fn().get()) : nullptr;
  };
  MeansNode* const node = result_of_means(maps.x, 1);
  return !maps.other.defined() || result_of_means(maps.other, 2) == node ? node : nullptr;
}

struct Gated : torch::autograd::Function<Gated> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& other,
                        const Tensor& logits, bool joined) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Maps maps{x, given(other)};
    ctx->save_for_backward({x, maps.other, logits});
    ctx->saved_data["joined"] = joined;
    return result_of(maps, logits, gate_of(maps));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list kept = ctx->get_saved_variables();
    Maps maps{kept[0], kept[1]};
    const Tensor& logits = kept[2];
    const bool other = maps.other.defined(), joined = ctx->saved_data["joined"].toBool();
    Tensor of_logits;
    Maps of;
    if (at::GradMode::is_enabled()) {
      // (Hooks on saved tensors may have left no graph behind them.)
      if (MeansNode* const node = joined ? means_behind(maps) : nullptr) {
        const variable_list before = node->ctx_.get_saved_variables();
        maps = {before[0], before[1]};
      }
      const Tensor s = composed_scale(logits, maps.x, other), &grad = grads[0];
      of.x = grad * s;
      if (other) of.other = grad - of.x;
      Tensor slope = (grad * (other ? maps.x - maps.other : maps.x)).sum({2, 3}, true);
      slope = (slope * s * (1 - s)).view({maps.x.size(0), -1, 1});
      of_logits = (other ? at::cat({slope, -slope}, 2) : slope).view(logits.sizes());
    } else {
      const Tensor grad = dense_gradient(grads[0], maps.x);
      if (ctx->needs_input_grad(other ? 2 : 1)) {
        of_logits = gradient_of_factor(maps, grad, logits, gate_of(maps));
      }
      if (joined) {
        of.x = grad;
      } else {
        of = gradients_of_maps(grad, other, logits, gate_of(maps), Tensor(), 0.,
                               ctx->needs_input_grad(0), other && ctx->needs_input_grad(1));
      }
    }
    return {of.x, of.other, of_logits, Tensor()};
  }
};

std::string refusal(const Tensor& x, const OptionalTensor& other, bool on_host) {
  std::string reason = map_refusal(x, on_host);
  if (!reason.empty()) return reason;
  if (other && (other->sizes() != x.sizes() || other->device() != x.device() ||
                other->scalar_type() != x.scalar_type() ||
                !other->is_contiguous(at::MemoryFormat::ChannelsLast))) {
    return "the other map is not as x";
  }
  return x.size(0) > 65535 ? "there are more than 65535 images" : "";
}

bool serves(const Tensor& x, const OptionalTensor& other, c10::string_view method) {
  const std::string chosen = chosen_method(kSwitch, method);
  return chosen != "torch" && refusal(x, other, chosen == "null").empty();
}

// Means [B, C, 1, 1] of the sum of the maps, and the maps for gate_channels; nothing where the
// kernels do not serve.
std::vector<Tensor> gate_means(const Tensor& x, const OptionalTensor& other,
                               c10::string_view method) {
  if (!serves(x, other, method)) return {};
  const Tensor second = given(other);
  if (wants_gradient({&x, &second})) return Means::apply(x, other);
  at::AutoDispatchBelowADInplaceOrView below;
  std::vector<Tensor> results{means_of({x, second}, x.scalar_type(), share(x.sizes())), x};
  if (other) results.push_back(second);
  return results;
}

// For maps that gate_means gave out.
Tensor gate_channels(const Tensor& x, const OptionalTensor& other, const Tensor& logits) {
  const Maps maps{x, given(other)};
  const int64_t each = other ? 2 : 1;
  TORCH_CHECK_VALUE(logits.numel() == x.size(0) * x.size(1) * each && logits.size(0) == x.size(0),
                    "the gate of maps ", x.sizes(), " needs [", x.size(0), ", ",
                    x.size(1) * each, ", 1, 1] logits, got ", logits.sizes());
  const Tensor there = logits.to(x.scalar_type()).contiguous();
  if (wants_gradient({&x, &maps.other, &there})) {
    MeansNode* const node = means_behind(maps);
    if (node != nullptr) {
      TORCH_CHECK(node->ctx_.saved_data.count("logits") == 0,
                  "the maps that gate_means gives out are for one gate");
      node->ctx_.saved_data["logits"] = there.detach();
    }
    return Gated::apply(x, other, there, node != nullptr);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return result_of(maps, there, gate_of(maps));
}

// The mean of a grouped convolution whose every tap meets every pixel: a product of matrices.
struct Convolution {
  Tensor weight;                           // [C, C / groups, Kh, Kw]
  int64_t groups, pixels;                  // pixels of its result

  int64_t width() const { return weight.size(1); }
  // [groups, C / groups outputs, C / groups]
  Tensor taps() const {
    return weight.sum({2, 3}, false, at::kFloat).view({groups, -1, width()});
  }
  // Vectors [B, C] as [groups, B, C / groups].
  Tensor by_group(const Tensor& vectors) const {
    return vectors.view({vectors.size(0), groups, -1}).transpose(0, 1);
  }
  // The product of what is by group, as vectors.
  Tensor product(const Tensor& vectors, const Tensor& matrices) const {
    Tensor result = at::empty({vectors.size(0), groups * matrices.size(2)}, vectors.options());
    Tensor by = by_group(result);
    at::bmm_out(by, by_group(vectors), matrices);
    return result;
  }
};

struct GatedByConvolution : torch::autograd::Function<GatedByConvolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        int64_t groups, int64_t pixels) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
    const Convolution conv{weight, groups, pixels};
    const Tensor taps = conv.taps();
    const Tensor means = means_of({x, {}}, at::kFloat, 1. / pixels).flatten(1);
    const Tensor gate = conv.product(means, taps.transpose(1, 2));
    ctx->save_for_backward({x, weight, means, taps, gate});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["pixels"] = pixels;
    return result_of({x, {}}, gate, kFactor);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
    const variable_list kept = ctx->get_saved_variables();
    const Tensor &x = kept[0], &weight = kept[1];
    const Convolution conv{weight, ctx->saved_data["groups"].toInt(),
                           ctx->saved_data["pixels"].toInt()};
    const auto of_weight = [&](const Tensor& of_gate, const Tensor& means) {
      const Tensor of_taps = at::bmm(conv.by_group(of_gate).transpose(1, 2),
                                     conv.by_group(means));
      return of_taps.to(weight.scalar_type()).reshape({weight.size(0), weight.size(1), 1, 1})
          .expand(weight.sizes());
    };
    if (at::GradMode::is_enabled()) {
      const Tensor wide = x.to(at::kFloat), taps = conv.taps(), grad = grads[0].to(at::kFloat);
      const auto times = [&](const Tensor& vectors, const Tensor& matrices) {
        return at::bmm(conv.by_group(vectors), matrices).transpose(0, 1).flatten(1);
      };
      const Tensor means = wide.sum({2, 3}) / conv.pixels;
      const Tensor gate = times(means, taps.transpose(1, 2));
      const Tensor of_gate = (grad * wide).sum({2, 3});
      const auto as_map = [](const Tensor& t) { return t.unsqueeze(2).unsqueeze(3); };
      const Tensor of_x = grad * as_map(gate) + as_map(times(of_gate, taps) / conv.pixels);
      return {of_x.to(x.scalar_type()), of_weight(of_gate, means), Tensor(), Tensor()};
    }
    const Tensor &means = kept[2], &taps = kept[3], &gate = kept[4];
    const Tensor grad = dense_gradient(grads[0], x);
    const Tensor of_gate = gradient_of_factor({x, {}}, grad, gate, kFactor);
    variable_list results(4);
    if (ctx->needs_input_grad(0)) {
      results[0] = gradients_of_maps(grad, false, gate, kFactor, conv.product(of_gate, taps),
                                     1. / conv.pixels, true, false).x;
    }
    if (ctx->needs_input_grad(1)) results[1] = of_weight(of_gate, means);
    return results;
  }
};

// x times the mean over `pixels` of a grouped convolution of x; nothing where the kernels do not
// serve.
OptionalTensor gate_by_convolution(const Tensor& x, const Tensor& weight, int64_t groups,
                                   int64_t pixels, c10::string_view method) {
  if (!serves(x, c10::nullopt, method)) return {};
  TORCH_CHECK_VALUE(weight.dim() == 4 && groups > 0 && weight.size(0) == x.size(1) &&
                        weight.size(1) * groups == x.size(1) && pixels > 0 &&
                        weight.device() == x.device(),
                    "a gate of maps ", x.sizes(), " and ", groups, " groups has a weight of the "
                    "shape ", weight.sizes(), " over ", pixels, " pixels");
  if (wants_gradient({&x, &weight})) {
    return GatedByConvolution::apply(x, weight, groups, pixels);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard off(c10::autocast_dispatch_keyset);
  const Convolution conv{weight, groups, pixels};
  const Tensor means = means_of({x, {}}, at::kFloat, 1. / pixels).flatten(1);
  return result_of({x, {}}, conv.product(means, conv.taps().transpose(1, 2)), kFactor);
}

}  // namespace
}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("gate_means(Tensor x, Tensor? other, str method) -> Tensor[]");
  m.def("gate_channels(Tensor x, Tensor? other, Tensor logits) -> Tensor");
  m.def("gate_by_convolution(Tensor x, Tensor weight, int groups, int pixels, str method) "
        "-> Tensor?");
  m.def("channel_gate_refusal(Tensor x, Tensor? other, bool on_host) -> str");
}

TORCH_LIBRARY_IMPL(mmcontext_native, CompositeImplicitAutograd, m) {
  m.impl("gate_means", &mmcontext::gate_means);
  m.impl("gate_channels", &mmcontext::gate_channels);
  m.impl("gate_by_convolution", &mmcontext::gate_by_convolution);
  m.impl("channel_gate_refusal", &mmcontext::refusal);
}
