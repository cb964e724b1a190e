// The CPU kernels of the local aggregation: planning and threads.
#include "local_aggregation.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "instruction_sets.h"
#include "work.h"

namespace mmcontext {
namespace {

int64_t round_to(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

Operand operand(const Tensor& t) {
  Operand o;
  const bool kernels = t.dim() == 5;
  const auto stride = [&](int64_t dim) { return t.size(dim) == 1 ? 0 : t.stride(dim); };
  o.data = static_cast<char*>(t.data_ptr());
  o.batch = stride(0);
  o.channel = stride(1);
  o.tap = kernels ? stride(2) : 0;
  o.row = stride(kernels ? 3 : 2);
  // A single column counts as contiguous: the kernels then load it as any other row.
  o.col = t.size(-1) == 1 ? 1 : t.stride(-1);
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  o.begin = o.data;
  o.end = o.data + (last + 1) * t.element_size();
  return o;
}

// A plan together with what it points to.
struct Planned {
  Plan plan{};
  std::vector<Phase> phases;
  std::vector<Tap> taps;
  std::vector<int64_t> shifts;
};

void add_forward_phase(Planned& p, const Plan& plan, int64_t out_rows, int64_t out_cols) {
  Phase phase{};
  phase.rows = out_rows;
  phase.cols = out_cols;
  phase.src_y = -plan.pad_h;
  phase.src_x = -plan.pad_w;
  phase.span_y = (plan.kernel_h - 1) * plan.dilation_h;
  phase.span_x = (plan.kernel_w - 1) * plan.dilation_w;
  phase.taps = plan.kernel_h * plan.kernel_w;
  p.phases.push_back(phase);
}

// Taps that reach the pixels whose coordinate is `rest` modulo `stride`, in ascending order of
// the position p = (coordinate + pad - dilation * k) / stride that they read.
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

int64_t pitch_without_aliasing(int64_t pitch, int64_t element) {
  // Channels a multiple of 1 KiB apart would fall into few sets of the first-level cache.
  return (pitch * element) % 1024 == 0 ? pitch + 64 / element : pitch;
}

// Fills in tiling, offsets and scratch size. `source_channels`: channels packed at a time.
void finish(Planned& p, int64_t lanes, int64_t element) {
  Plan& plan = p.plan;
  int64_t rows = 0, cols = 0, span_y = 0, span_x = 0, taps = 0, masks = 0;
  for (const Phase& phase : p.phases) {
    rows = std::max(rows, phase.rows);
    cols = std::max(cols, phase.cols);
    span_y = std::max(span_y, phase.span_y);
    span_x = std::max(span_x, phase.span_x);
    taps = std::max(taps, phase.taps);
    masks = std::max(masks, phase.masks);
  }
  plan.chunk = plan.task == Task::kGradWeight ? plan.shared : std::min<int64_t>(plan.shared, 32);
  plan.tiles = std::max<int64_t>(1, ceil_div(cols, 160));
  plan.tile = round_to(std::max<int64_t>(1, ceil_div(cols, plan.tiles)), lanes);
  plan.tiles = std::max<int64_t>(1, ceil_div(cols, plan.tile));
  // Strips of about 15 rows, fewer where there are not enough units for all threads.
  const int64_t others = plan.batch * plan.groups * plan.tiles * plan.phases;
  const int64_t wanted = ceil_div(4 * at::get_num_threads(), std::max<int64_t>(1, others));
  int64_t strip = std::max<int64_t>(1, std::min<int64_t>(15, ceil_div(rows, wanted)));
  if (rows <= 16 && wanted == 1) strip = std::max<int64_t>(1, rows);
  plan.strip = strip >= 3 && strip < rows ? round_to(strip, 3) : strip;
  plan.strips = std::max<int64_t>(1, ceil_div(rows, plan.strip));
  const int64_t step = plan.src_step_x;
  plan.phase_pitch = ceil_div((plan.tile - 1) * step + span_x + 1, step);
  plan.row_pitch = step * plan.phase_pitch;
  const int64_t source_rows = (plan.strip - 1) * plan.src_step_y + span_y + 1;
  plan.channel_pitch = pitch_without_aliasing(round_to(source_rows * plan.row_pitch, 16), element);
  plan.units = plan.batch * plan.groups * plan.strips * plan.tiles * plan.phases;
  plan.pack_rows = plan.lattice ? 3 : 1;
  const int64_t vectors = plan.tile / lanes;
  const int64_t packed_source = plan.chunk * plan.channel_pitch + lanes;
  const int64_t packed_other = plan.task == Task::kGradWeight
                                   ? plan.strip * plan.shared * plan.tile
                                   : (plan.pack_rows * taps + masks) * vectors * lanes;
  plan.scratch_bytes = (packed_source + packed_other) * element + 4 * 64;
  size_t tap = 0, shift = 0;
  for (Phase& phase : p.phases) {
    phase.tap = p.taps.data() + tap;
    phase.mask_shift = p.shifts.data() + shift;
    tap += phase.taps;
    shift += phase.masks;
  }
  plan.phase = p.phases.data();
}

// Whether an operand lies pixel by pixel, its channels (or groups and taps) without a gap.
bool by_pixel(const Operand& o, int64_t taps) {
  return taps == 0 ? o.channel == 1 : o.tap == 1 && o.channel == taps;
}

// Whether the kernels are compiled for this size.
bool square(const Plan& plan) {
  return plan.kernel_h == plan.kernel_w &&
         (plan.kernel_w == 3 || plan.kernel_w == 5 || plan.kernel_w == 7);
}

// Whether the channels-last kernels serve this call; if so, its division among threads.
bool plan_pixels(Planned& p, const Kernels& set) {
  Plan& plan = p.plan;
  const int64_t taps = plan.kernel_h * plan.kernel_w;
  const int64_t lanes = set.vector_bytes / 4;
  const bool weight = plan.task == Task::kGradWeight;
  if (plan.storage == Storage::kDouble || !by_pixel(plan.source, 0) ||
      !by_pixel(plan.kernel, weight ? 0 : taps) || !by_pixel(plan.target, weight ? taps : 0)) {
    return false;
  }
  const int64_t rows = plan.out_rows;
  plan.pack_rows = 0;
  size_t scratch = 0;
  if (plan.interleaved) {
    const bool dense = plan.stride_h == 1 && plan.stride_w == 1;
    if (plan.groups % std::max<int64_t>(lanes, 8) != 0 ||
        (plan.task == Task::kGradInput && !dense)) {
      return false;
    }
    plan.chunk = 1;
    plan.strip = std::max<int64_t>(
        1, std::min<int64_t>(8, plan.batch * rows / (4 * at::get_num_threads())));
    plan.pack_rows = plan.strip;
    if (plan.task == Task::kGradInput) {
      plan.pack_rows += (plan.kernel_h - 1) * plan.dilation_h;
    }
    scratch = weight ? 4 * (plan.shared * plan.groups + 2 * taps * lanes) + taps * sizeof(char*)
                     : 4 * (plan.pack_rows * plan.ker_cols + 1) * taps * plan.groups +
                           taps * 2 * sizeof(char*);
    if (scratch > kKeptScratch) return false;
  } else {
    const bool halved = plan.stride_h == 2 && plan.stride_w == 2 && plan.dilation_h == 1 &&
                        plan.dilation_w == 1 && square(plan);
    if (!(plan.lattice || halved) || plan.shared % set.wide_channels != 0 ||
        (weight && lanes < 8)) {
      return false;
    }
    plan.chunk = plan.groups;
    plan.strip = std::max<int64_t>(
        1, std::min<int64_t>(8, plan.batch * plan.groups * rows / (4 * at::get_num_threads())));
    if (plan.storage != Storage::kFloat && !weight) {  // rows of kernels as float32
      const int64_t slots = plan.task == Task::kGradInput ? plan.kernel_h : 1;
      scratch = 4 * slots * plan.ker_cols * taps;
    }
  }
  plan.strips = ceil_div(rows, plan.strip);
  plan.units = plan.batch * plan.chunk * plan.strips;
  plan.scratch_bytes = scratch + 4 * 64;
  plan.phase = p.phases.data();
  plan.pixel_major = true;
  return true;
}

Planned make_plan(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                  const Geometry& g, const Kernels& set) {
  Planned p;
  Plan& plan = p.plan;
  plan.task = task;
  plan.storage = storage_of(source);
  plan.element_bytes = source.element_size();
  plan.source = operand(source);
  plan.kernel = operand(kernel);
  plan.target = operand(target);
  plan.interleaved = g.interleaved;
  const Tensor& grouped = task == Task::kGradWeight ? target : kernel;
  plan.batch = source.size(0);
  plan.groups = grouped.size(1);
  plan.shared = source.size(1) / plan.groups;
  plan.group_step = g.interleaved ? 1 : plan.shared;
  plan.channel_step = g.interleaved ? plan.groups : 1;
  plan.src_rows = source.size(2);
  plan.src_cols = source.size(3);
  plan.ker_rows = kernel.size(-2);
  plan.ker_cols = kernel.size(-1);
  plan.out_rows = target.size(-2);
  plan.out_cols = target.size(-1);
  plan.kernel_h = g.kernel[0];
  plan.kernel_w = g.kernel[1];
  plan.stride_h = g.stride[0];
  plan.stride_w = g.stride[1];
  plan.pad_h = g.padding[0];
  plan.pad_w = g.padding[1];
  plan.dilation_h = g.dilation[0];
  plan.dilation_w = g.dilation[1];
  const bool dense = plan.stride_h == 1 && plan.stride_w == 1 && plan.dilation_h == 1 &&
                     plan.dilation_w == 1;
  plan.lattice = dense && plan.storage != Storage::kDouble && square(plan);
  const int64_t element = plan.storage == Storage::kDouble ? 8 : 4;
  const int64_t lanes = set.vector_bytes / element;
  if (task == Task::kGradInput) {
    plan.src_step_y = plan.src_step_x = 1;
    plan.out_step_y = plan.stride_h;
    plan.out_step_x = plan.stride_w;
    for (int64_t y = 0; y < plan.stride_h; ++y) {
      const auto down = reach(y, plan.kernel_h, plan.stride_h, plan.pad_h, plan.dilation_h);
      for (int64_t x = 0; x < plan.stride_w; ++x) {
        const auto across = reach(x, plan.kernel_w, plan.stride_w, plan.pad_w, plan.dilation_w);
        Phase phase{};
        phase.rows = std::max<int64_t>(0, ceil_div(target.size(2) - y, plan.stride_h));
        phase.cols = std::max<int64_t>(0, ceil_div(target.size(3) - x, plan.stride_w));
        phase.out_y = y;
        phase.out_x = x;
        phase.taps = down.size() * across.size();
        if (phase.taps > 0) {
          phase.src_y = down.front().offset;
          phase.src_x = across.front().offset;
          phase.span_y = down.back().offset - phase.src_y;
          phase.span_x = across.back().offset - phase.src_x;
          phase.masks = across.size();
        }
        for (const Reach& r : down) {
          for (size_t c = 0; c < across.size(); ++c) {
            p.taps.push_back({r.tap * plan.kernel_w + across[c].tap, r.offset, across[c].offset,
                              0, static_cast<int64_t>(c)});
          }
        }
        if (phase.taps > 0) {
          for (const Reach& c : across) p.shifts.push_back(c.offset);
        }
        p.phases.push_back(phase);
      }
    }
  } else {
    plan.src_step_y = plan.stride_h;
    plan.src_step_x = plan.stride_w;
    plan.out_step_y = plan.out_step_x = 1;
    for (int64_t k = 0; k < plan.kernel_h * plan.kernel_w; ++k) p.taps.push_back({k, 0, 0, 0, 0});
    add_forward_phase(p, plan, plan.ker_rows, plan.ker_cols);
  }
  plan.phases = p.phases.size();
  if (plan_pixels(p, set)) return p;
  finish(p, lanes, element);
  // Where a tap's source lies in the packed source.
  size_t tap = 0;
  for (const Phase& phase : p.phases) {
    for (int64_t t = 0; t < phase.taps; ++t, ++tap) {
      Tap& entry = p.taps[tap];
      int64_t y, x;
      if (task == Task::kGradInput) {
        y = entry.ker_y - phase.src_y;
        x = entry.ker_x - phase.src_x;
      } else {
        y = entry.tap / plan.kernel_w * plan.dilation_h;
        x = entry.tap % plan.kernel_w * plan.dilation_w;
      }
      entry.offset = y * plan.row_pitch + x % plan.src_step_x * plan.phase_pitch +
                     x / plan.src_step_x;
    }
  }
  return p;
}

}  // namespace

void run_on_cpu(Task task, const Tensor& source, const Tensor& kernel, const Tensor& target,
                const Geometry& geometry) {
  if (target.numel() == 0) return;
  const std::vector<const Kernels*> sets = allowed_kernels();
  const Kernels* set = sets.front();
  Planned planned = make_plan(task, source, kernel, target, geometry, *set);
  // Where a channels-last tensor has too few channels for wide vectors, narrower ones are
  // several times as fast as turning its pixels into planes.
  const bool pixels = source.stride(1) == 1 && source.size(1) > 1;
  if (pixels && !planned.plan.pixel_major && sets.size() > 1) {
    Planned narrow = make_plan(task, source, kernel, target, geometry, *sets[1]);
    if (narrow.plan.pixel_major) {
      planned = std::move(narrow);
      set = sets[1];
    }
  }
  const Plan& plan = planned.plan;
  at::parallel_for(0, plan.units, 1, [&](int64_t begin, int64_t end) {
    with_scratch(plan.scratch_bytes,
                 [&](char* scratch) { set->run(plan, begin, end, scratch); });
  });
}

}  // namespace mmcontext
