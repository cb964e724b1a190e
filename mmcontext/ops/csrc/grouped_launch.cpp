// Plans for convolutions with narrow groups, cached by geometry, and their launches.
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "gpu.h"
#include "gpu_maps.h"
#include "grouped_conv.h"

namespace mmcontext {
namespace {

using at::Tensor;
using OptionalTensor = c10::optional<Tensor>;

bool served(const Tensor& x, bool on_host) {
  return on_host ? x.is_cpu() : x.is_cuda() && gpu_refusal(x.get_device()).empty();
}

const GroupedPlan& plan_of(const GroupedProblem& p, int64_t device) {
  using Key = std::array<int64_t, 12>;
  static std::shared_mutex mutex;
  static std::map<Key, std::unique_ptr<GroupedPlan>> plans;
  const Key key{static_cast<int>(p.task), p.storage, p.in, p.out, p.groups, p.kernel, p.stride,
                p.batch, p.rows, p.cols, p.bias, device};
  {
    std::shared_lock<std::shared_mutex> lock(mutex);
    const auto found = plans.find(key);
    if (found != plans.end()) return *found->second;
  }
  const std::string reason = grouped_refusal(p.in, p.out, p.groups, p.kernel, p.stride);
  TORCH_CHECK_VALUE(reason.empty(), "method 'direct' of grouped_conv2d does not support this call: ", reason);
  auto made = std::make_unique<GroupedPlan>(plan_grouped(p, gpu_limits(device)));
  TORCH_CHECK(made->parts > 0, "the GPU has too little shared memory for method 'direct' of "
              "grouped_conv2d with ", made->main.defines);
  std::unique_lock<std::shared_mutex> lock(mutex);
  return *plans.emplace(key, std::move(made)).first->second;
}

GroupedProblem problem_of(GroupedTask task, const Tensor& w, at::IntArrayRef x,
                          const GroupedCall& call, bool bias) {
  const auto narrow = [](int64_t number) { return static_cast<int>(number); };
  return {task, w.scalar_type() == at::kBFloat16 ? 2 : 3, narrow(w.size(1)),
          narrow(w.size(0) / call.groups), narrow(call.groups), narrow(w.size(2)),
          narrow(call.stride), narrow(x[0]), narrow(x[2]), narrow(x[3]), bias};
}

// A map that can be read and written in vectors of 16 bytes of neighbouring channels: a
// channels-last one, or a slice of the channels of a larger one.
Tensor readable(const Tensor& map) {
  bool fits = map.stride(1) == 1 && reinterpret_cast<uintptr_t>(map.data_ptr()) % 16 == 0;
  for (const int dim : {0, 2, 3}) fits = fits && (map.size(dim) == 1 || map.stride(dim) % 8 == 0);
  if (fits) return map;
  const Tensor copy = map.contiguous(at::MemoryFormat::ChannelsLast);
  // A single channel or pixel counts as contiguous in any layout.
  return copy.stride(1) == 1 ? copy : copy.clone(at::MemoryFormat::ChannelsLast);
}

PixelMap pixels(const Tensor& map) {
  const auto stride = [&](int dim) { return map.size(dim) == 1 ? 0 : map.stride(dim); };
  return {address_of(map), stride(0), static_cast<int>(stride(2)),
          static_cast<int>(stride(3)), static_cast<int>(map.size(2)),
          static_cast<int>(map.size(3))};
}

template <class Parameters> void set_weight_strides(const Tensor& w, Parameters& q) {
  q.weight_out = static_cast<int>(w.stride(0));
  q.weight_in = static_cast<int>(w.stride(1));
  q.weight_row = static_cast<int>(w.stride(2));
  q.weight_col = static_cast<int>(w.stride(3));
}

template <class Parameters> CudaLaunch filled(const CudaLaunch& launch, const Parameters& q) {
  CudaLaunch copy = launch;
  copy.parameters = bytes_of(q);
  return copy;
}

void expect(GroupedTask task, const Tensor& x, const Tensor& w, const GroupedCall& call) {
  const int64_t device = gpu_index(x);
  const GroupedPlan& plan = plan_of(problem_of(task, w, x.sizes(), call, false), device);
  expect_kernel(device, plan.main);
  if (task == GroupedTask::kGradWeight) expect_kernel(device, plan.sum);
}

}  // namespace

void run_grouped_map(GroupedTask task, const Tensor& source, const Tensor& w,
                     const OptionalTensor& bias, const Tensor& target, const GroupedCall& call,
                     bool accumulate) {
  const int64_t device = gpu_index(source);
  const Tensor& x = task == GroupedTask::kForward ? source : target;
  const bool with_bias = bias.has_value() && bias->defined();
  const GroupedPlan& plan = plan_of(problem_of(task, w, x.sizes(), call, with_bias), device);
  const Tensor from = readable(source), added = with_bias ? bias->contiguous() : Tensor();
  GroupedParameters q = plan.parameters;
  q.source = pixels(from);
  q.target = pixels(target);
  q.weight = address_of(w);
  q.bias = address_of(added);
  q.accumulate = accumulate;
  set_weight_strides(w, q);
  launch_on_gpu(device, {filled(plan.main, q)});
}

Tensor grouped_grad_weight(const Tensor& grad, const Tensor& x, const Tensor& w,
                           const GroupedCall& call) {
  if (x.numel() == 0) return at::zeros_like(w);
  const int64_t device = gpu_index(x);
  const GroupedPlan& plan =
      plan_of(problem_of(GroupedTask::kGradWeight, w, x.sizes(), call, false), device);
  const Tensor from = readable(x), other = readable(grad);
  Tensor result = at::empty_like(w);
  const Tensor partial = at::empty({plan.parts, w.numel()}, w.options().dtype(at::kFloat));
  GroupedParameters q = plan.parameters;
  q.source = pixels(from);
  q.target = pixels(other);
  q.partial = address_of(partial);
  GroupedSumParameters sum{};
  sum.partial = q.partial;
  sum.target = address_of(result);
  set_weight_strides(result, sum);
  sum.parts = plan.parts;
  sum.count = static_cast<int>(w.numel());
  launch_on_gpu(device, {filled(plan.main, q), filled(plan.sum, sum)});
  return result;
}

void expect_grouped_gradients(const Tensor& x, const Tensor& w, bool bias,
                              const GroupedCall& call) {
  if (x.numel() == 0) return;
  const GroupedPlan& plan =
      plan_of(problem_of(GroupedTask::kForward, w, x.sizes(), call, bias), gpu_index(x));
  if (is_built(gpu_index(x), plan.main)) return;
  for (const auto task : {GroupedTask::kGradInput, GroupedTask::kGradWeight}) {
    expect(task, x, w, call);
  }
}

bool takes_grouped(const Tensor& x, bool on_host) {
  return (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf) &&
         served(x, on_host);
}

}  // namespace mmcontext
