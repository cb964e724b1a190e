// Plans for the kernels that pack tiles of their operands into scratch.
#include <algorithm>
#include <vector>

#include "plans.h"
#include "scratch.h"
#include "work.h"

namespace mmcontext {
namespace {

// The phases of a plan, and the arrays that they point into.
struct Phases {
  std::vector<Phase> phases;
  std::vector<Tap> taps;
  std::vector<int64_t> shifts;

  void attach(PlanarPlan& plan) {
    size_t tap = 0, shift = 0;
    for (Phase& phase : phases) {
      phase.tap = taps.data() + tap;
      phase.mask_shift = shifts.data() + shift;
      tap += phase.taps;
      shift += phase.masks;
    }
    plan.phase = phases.data();
    plan.phases = phases.size();
  }
};

// The maximum of each field over the phases.
Phase largest(const std::vector<Phase>& phases) {
  Phase most{};
  for (const Phase& phase : phases) {
    most.rows = std::max(most.rows, phase.rows);
    most.cols = std::max(most.cols, phase.cols);
    most.span_y = std::max(most.span_y, phase.span_y);
    most.span_x = std::max(most.span_x, phase.span_x);
    most.taps = std::max(most.taps, phase.taps);
    most.masks = std::max(most.masks, phase.masks);
  }
  return most;
}

// The one phase of a forward pass or of the gradient of the kernels.
void add_phase(Phases& to, const Aggregation& call) {
  Phase phase{};
  phase.rows = call.ker_rows;
  phase.cols = call.ker_cols;
  phase.src_y = -call.pad_h;
  phase.src_x = -call.pad_w;
  phase.span_y = (call.kernel_h - 1) * call.dilation_h;
  phase.span_x = (call.kernel_w - 1) * call.dilation_w;
  phase.taps = call.kernel_h * call.kernel_w;
  to.phases.push_back(phase);
  for (int64_t k = 0; k < phase.taps; ++k) to.taps.push_back({k, 0, 0, 0, 0});
}

// The taps k that contribute to the pixels whose coordinate is `rest` modulo `stride`, ordered by
// the position (coordinate + pad - dilation * k) / stride that they read.
struct Reach {
  int64_t tap, offset;
};
std::vector<Reach> reach(int64_t rest, int64_t kernel, int64_t stride, int64_t pad,
                         int64_t dilation) {
  std::vector<Reach> found;
  for (int64_t k = kernel - 1; k >= 0; --k) {
    const int64_t distance = rest + pad - dilation * k;
    if ((distance % stride + stride) % stride == 0) found.push_back({k, distance / stride});
  }
  return found;
}

// The phase of the gradient of the input whose first pixel is (y, x).
void add_gradient_phase(Phases& to, const Aggregation& call, int64_t y, int64_t x) {
  const auto down = reach(y, call.kernel_h, call.stride_h, call.pad_h, call.dilation_h);
  const auto across = reach(x, call.kernel_w, call.stride_w, call.pad_w, call.dilation_w);
  Phase phase{};
  phase.rows = std::max<int64_t>(0, ceil_div(call.out_rows - y, call.stride_h));
  phase.cols = std::max<int64_t>(0, ceil_div(call.out_cols - x, call.stride_w));
  phase.out_y = y;
  phase.out_x = x;
  phase.taps = down.size() * across.size();
  if (phase.taps > 0) {
    phase.src_y = down.front().offset;
    phase.src_x = across.front().offset;
    phase.span_y = down.back().offset - phase.src_y;
    phase.span_x = across.back().offset - phase.src_x;
    phase.masks = across.size();
    for (const Reach& c : across) to.shifts.push_back(c.offset);
  }
  for (const Reach& r : down) {
    for (size_t c = 0; c < across.size(); ++c) {
      to.taps.push_back({r.tap * call.kernel_w + across[c].tap, r.offset, across[c].offset, 0,
                         static_cast<int64_t>(c)});
    }
  }
  to.phases.push_back(phase);
}

int64_t pitch_without_aliasing(int64_t pitch, int64_t element) {
  // Channels a multiple of 1 KiB apart would map to few sets of the L1 cache.
  return (pitch * element) % 1024 == 0 ? pitch + 64 / element : pitch;
}

// Chooses strips and tiles, and how the source of a strip and tile is packed.
void divide(PlanarPlan& plan, const Phase& most, int64_t lanes, int64_t element) {
  plan.tiles = std::max<int64_t>(1, ceil_div(most.cols, 160));
  plan.tile = round_to(std::max<int64_t>(1, ceil_div(most.cols, plan.tiles)), lanes);
  plan.tiles = std::max<int64_t>(1, ceil_div(most.cols, plan.tile));
  // Strips of about 15 rows, fewer if there would not be enough units for all threads.
  const int64_t others = plan.batch * plan.groups * plan.tiles * plan.phases;
  const int64_t wanted = ceil_div(4 * thread_count(), std::max<int64_t>(1, others));
  int64_t strip = std::max<int64_t>(1, std::min<int64_t>(15, ceil_div(most.rows, wanted)));
  if (most.rows <= 16 && wanted == 1) strip = std::max<int64_t>(1, most.rows);
  plan.strip = strip >= 3 && strip < most.rows ? round_to(strip, 3) : strip;
  plan.strips = std::max<int64_t>(1, ceil_div(most.rows, plan.strip));
  plan.units = others * plan.strips;
  const int64_t step = plan.src_step_x;
  plan.phase_pitch = ceil_div((plan.tile - 1) * step + most.span_x + 1, step);
  plan.row_pitch = step * plan.phase_pitch;
  const int64_t rows = (plan.strip - 1) * plan.src_step_y + most.span_y + 1;
  plan.channel_pitch = pitch_without_aliasing(round_to(rows * plan.row_pitch, 16), element);
}

// Computes the offset of each tap in the packed source.
void place_taps(Phases& of, const PlanarPlan& plan) {
  const bool gradient = plan.task == Task::kGradInput;
  size_t tap = 0;
  for (const Phase& phase : of.phases) {
    for (int64_t t = 0; t < phase.taps; ++t, ++tap) {
      Tap& entry = of.taps[tap];
      const int64_t y = gradient ? entry.ker_y - phase.src_y
                                 : entry.tap / plan.kernel_w * plan.dilation_h;
      const int64_t x = gradient ? entry.ker_x - phase.src_x
                                 : entry.tap % plan.kernel_w * plan.dilation_w;
      entry.offset = y * plan.row_pitch + x % plan.src_step_x * plan.phase_pitch +
                     x / plan.src_step_x;
    }
  }
}

// Room for one more vector: source rows are written a vector at a time, the last one beyond its
// end.
Buffer book_source(Ledger& ledger, const PlanarPlan& plan, int64_t channels, int64_t lanes,
                   int64_t element) {
  return ledger.book_bytes((channels * plan.channel_pitch + lanes) * element);
}

void run_sum(const Aggregation& call, const Kernels& set, int64_t element) {
  const int64_t lanes = set.vector_bytes / element;
  const bool gradient = call.task == Task::kGradInput;
  PlanarSum plan{};
  static_cast<Aggregation&>(plan) = call;
  plan.lattice = is_lattice(call);
  plan.src_step_y = gradient ? 1 : call.stride_h;
  plan.src_step_x = gradient ? 1 : call.stride_w;
  plan.out_step_y = gradient ? call.stride_h : 1;
  plan.out_step_x = gradient ? call.stride_w : 1;
  Phases phases;
  if (gradient) {
    for (int64_t y = 0; y < call.stride_h; ++y) {
      for (int64_t x = 0; x < call.stride_w; ++x) add_gradient_phase(phases, call, y, x);
    }
  } else {
    add_phase(phases, call);
  }
  phases.attach(plan);
  const Phase most = largest(phases.phases);
  divide(plan, most, lanes, element);
  place_taps(phases, plan);
  plan.chunk = std::min<int64_t>(call.shared, 32);
  Ledger ledger;
  plan.packed_source = book_source(ledger, plan, plan.chunk, lanes, element);
  plan.packed_kernels = ledger.book_bytes((plan.lattice ? 3 : 1) * most.taps * plan.tile *
                                          element);
  plan.masks = ledger.book_bytes(most.masks * plan.tile * element);
  run_units(plan, ledger, set.planar_sum);
}

void run_grad_weight(const Aggregation& call, const Kernels& set, int64_t element) {
  const int64_t lanes = set.vector_bytes / element;
  PlanarGradWeight plan{};
  static_cast<Aggregation&>(plan) = call;
  plan.lattice = is_lattice(call);
  plan.src_step_y = call.stride_h;
  plan.src_step_x = call.stride_w;
  Phases phases;
  add_phase(phases, call);
  phases.attach(plan);
  divide(plan, largest(phases.phases), lanes, element);
  place_taps(phases, plan);
  Ledger ledger;
  plan.packed_source = book_source(ledger, plan, call.shared, lanes, element);
  plan.packed_gradient = ledger.book_bytes(plan.strip * call.shared * plan.tile * element);
  run_units(plan, ledger, set.planar_grad_weight);
}

}  // namespace

void run_planar(const Aggregation& call, const Kernels& set) {
  const int64_t element = call.storage == Storage::kDouble ? 8 : 4;  // of the sums
  (call.task == Task::kGradWeight ? run_grad_weight : run_sum)(call, set, element);
}

}  // namespace mmcontext
