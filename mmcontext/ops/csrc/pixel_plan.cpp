// Plans for the kernels for channels-last tensors: what they support, and what scratch they need.
#include <algorithm>

#include "plans.h"
#include "scratch.h"
#include "work.h"

namespace mmcontext {
namespace {

// Chooses the rows per unit, for about four units of work per thread.
void divide(PixelPlan& plan, int64_t parts) {
  plan.parts = parts;
  plan.strip = std::max<int64_t>(1, std::min<int64_t>(8, plan.batch * parts * plan.out_rows /
                                                             (4 * thread_count())));
  plan.strips = ceil_div(plan.out_rows, plan.strip);
  plan.units = plan.batch * parts * plan.strips;
}

bool run_block(const Aggregation& call, const Kernels& set) {
  const bool weight = call.task == Task::kGradWeight;
  const bool halved = call.stride_h == 2 && call.stride_w == 2 && call.dilation_h == 1 &&
                      call.dilation_w == 1 && compiled_square(call);
  if (!(is_lattice(call) || halved) || call.shared % set.wide_channels != 0 ||
      (weight && set.vector_bytes < 32)) {
    return false;
  }
  PixelBlock plan{};
  static_cast<Aggregation&>(plan) = call;
  divide(plan, call.groups);
  Ledger ledger;
  if (call.storage != Storage::kFloat && !weight) {
    plan.kept_rows = call.task == Task::kGradInput ? call.kernel_h : 1;
  }
  plan.kernel_rows = ledger.book<float>(plan.kept_rows * call.ker_cols * call.kernel_h *
                                        call.kernel_w);
  run_units(plan, ledger, weight ? set.pixel_block_grad_weight : set.pixel_block);
  return true;
}

bool run_interleaved(const Aggregation& call, const Kernels& set) {
  const int64_t taps = call.kernel_h * call.kernel_w;
  PixelInterleaved plan{};
  static_cast<Aggregation&>(plan) = call;
  divide(plan, 1);
  plan.turned_rows = plan.strip;
  if (call.task == Task::kGradInput) plan.turned_rows += (call.kernel_h - 1) * call.dilation_h;
  Ledger ledger;
  plan.turned = ledger.book<float>(plan.turned_rows * call.ker_cols * taps * call.groups);
  plan.widened = ledger.book<float>(call.storage == Storage::kFloat ? 0 : taps * call.groups);
  plan.sources = ledger.book<PixelTap<float>>(taps);
  if (ledger.bytes() > kKeptScratch) return false;
  run_units(plan, ledger, set.pixel_interleaved);
  return true;
}

bool run_interleaved_grad_weight(const Aggregation& call, const Kernels& set) {
  const int64_t taps = call.kernel_h * call.kernel_w;
  const int64_t lanes = set.vector_bytes / int64_t(sizeof(float));
  PixelInterleavedGradWeight plan{};
  static_cast<Aggregation&>(plan) = call;
  divide(plan, 1);
  Ledger ledger;
  plan.sums = ledger.book<float>(taps * lanes);
  plan.widened = ledger.book<float>(taps * lanes);
  plan.sources = ledger.book<const char*>(taps);
  plan.zeros = ledger.book_bytes(call.shared * call.groups * call.element_bytes);
  if (ledger.bytes() > kKeptScratch) return false;
  run_units(plan, ledger, set.pixel_interleaved_grad_weight);
  return true;
}

// Whether an operand is channels-last, its channels (or groups and taps) without gaps.
bool lies_by_pixel(const Operand& o, int64_t taps) {
  return taps == 0 ? o.channel == 1 : o.tap == 1 && o.channel == taps;
}

}  // namespace

bool run_by_pixel(const Aggregation& call, const Kernels& set) {
  const int64_t taps = call.kernel_h * call.kernel_w;
  const bool weight = call.task == Task::kGradWeight;
  if (call.storage == Storage::kDouble || !lies_by_pixel(call.source, 0) ||
      !lies_by_pixel(call.kernel, weight ? 0 : taps) ||
      !lies_by_pixel(call.target, weight ? taps : 0)) {
    return false;
  }
  if (!call.interleaved) return run_block(call, set);
  const int64_t lanes = set.vector_bytes / int64_t(sizeof(float));
  if (call.groups % std::max<int64_t>(lanes, 8) != 0) return false;
  if (weight) return run_interleaved_grad_weight(call, set);
  const bool dense = call.stride_h == 1 && call.stride_w == 1;
  return (call.task == Task::kForward || dense) && run_interleaved(call, set);
}

}  // namespace mmcontext
