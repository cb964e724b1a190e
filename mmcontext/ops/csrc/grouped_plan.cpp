#include "grouped_plan.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

namespace mmcontext {
namespace {

// Registers per thread that hold operands: if two or more blocks are to share a multiprocessor,
// and at most.
constexpr int kFewRegisters = 104, kMostRegisters = 176;
constexpr int kOtherRegisters = 24;
constexpr int kWarps = 4, kMostWarps = 16;            // of a block
// Estimates per multiprocessor: matrix products and bytes per cycle, cycles between parts, MHz.
constexpr double kProducts = 0.5, kBytes = 20, kBetween = 1500, kClock = 1700;

int divided_up(int a, int b) { return (a + b - 1) / b; }

// Which source rows (and columns) belong to which target rows; as in cuda/grouped.cuh.
struct Reach {
  bool transposed;
  int kernel, stride;

  int margin() const { return transposed ? kernel / 2 / stride : kernel / 2; }
  int seen(int targets) const {
    return transposed ? margin() + (targets - 1 + kernel / 2) / stride + 1
                      : stride * (targets - 1) + kernel;
  }
  int step(int targets) const { return transposed ? targets / stride : targets * stride; }
  bool belongs(int from, int to, int rows) const {
    const int tap = transposed ? to + kernel / 2 - stride * (from - margin()) : from - stride * to;
    return tap >= 0 && tap < rows;
  }
};

// The compile-time parameters.
struct Form {
  int source = 0, target = 0;          // channels of a group
  int strip = 0, run = 0, tiles = 0, parts = 0, rows = 0, splits = 1, groups = 0;
  int steps = 0, registers = 0;
  int warps() const { return groups * parts * splits; }
  int blocks() const {
    const int fit = 65536 / (32 * warps() * (registers + kOtherRegisters));
    return std::max(1, std::min(fit, kMostWarps / warps()));
  }
};

bool is_weight(GroupedTask task) { return task == GroupedTask::kGradWeight; }

Reach reach_of(const GroupedProblem& p) {
  return {p.task == GroupedTask::kGradInput, p.kernel, p.stride};
}

// The strip with the fewest matrix products per target column; 0 if none is possible.
int best_strip(GroupedTask task, const Reach& reach, int source, int target) {
  int best = 0;
  double least = std::numeric_limits<double>::max();
  for (int strip = 1; strip <= 16; ++strip) {
    if (reach.transposed && strip % reach.stride) continue;
    // Windows have to be aligned to 8 bytes, those loaded by ldmatrix to 16.
    if (2 * reach.step(strip) * source % (is_weight(task) ? 16 : 8)) continue;
    if (strip * target % 8) continue;
    const int steps = divided_up(reach.seen(strip) * source, 16);
    const double cost = double(steps) * (strip * target / 8) / strip;
    if (cost < least) {
      least = cost;
      best = strip;
    }
  }
  return best;
}

// Splits the work of a group among warps such that the operands fit in registers.
bool fit_registers(const GroupedProblem& p, const Reach& reach, Form& form) {
  const int tiles = form.strip * form.target / 8;
  const bool pairs = reach.transposed && reach.stride == 2;  // runs begin on even rows
  const std::array<int, 2> runs = pairs ? std::array<int, 2>{4, 2} : std::array<int, 2>{7, 4};
  for (const int most : {kFewRegisters, kMostRegisters}) {
    for (int parts = 1; parts <= std::min(tiles, 4); ++parts) {
      if (tiles % parts) continue;
      if (is_weight(p.task) && parts > 1 && form.strip > 1) continue;
      form.parts = parts;
      form.tiles = tiles / parts;
      for (form.splits = 1; form.splits <= (is_weight(p.task) ? p.kernel : 1); ++form.splits) {
        form.rows = divided_up(p.kernel, form.splits);
        for (const int run : runs) {
          form.run = run;
          form.registers =
              is_weight(p.task)
                  ? 4 * form.rows * form.steps * form.tiles + 2 * run * form.tiles + 4
                  : 2 * p.kernel * form.steps * form.tiles + 4 * run * form.tiles +
                        4 * form.steps;
          if (form.registers <= most && form.parts * form.splits <= kMostWarps) return true;
        }
      }
    }
  }
  return false;
}

// Chooses the groups per block: a pixel has to be stored in vectors of 16 bytes, and a block needs
// enough warps.
bool fit_groups(const GroupedProblem& p, Form& form) {
  for (int groups = 1; groups <= p.groups; ++groups) {
    if (p.groups % groups) continue;
    // Groups of a single channel are loaded 4 or 8 at a time.
    const bool single = form.source == 1 || (is_weight(p.task) && form.target == 1);
    if (single && groups % 4) continue;
    if (!is_weight(p.task) && groups * form.target % 8) continue;
    form.groups = groups;
    if (form.warps() > kMostWarps) return false;
    if (form.warps() >= kWarps || groups == p.groups) return true;
  }
  return false;
}

bool find_form(const GroupedProblem& p, Form& form) {
  const bool swapped = p.task == GroupedTask::kGradInput;
  form.source = swapped ? p.out : p.in;
  form.target = swapped ? p.in : p.out;
  const Reach reach = reach_of(p);
  form.strip = best_strip(p.task, reach, form.source, form.target);
  if (!form.strip) return false;
  form.steps = divided_up(reach.seen(form.strip) * form.source, 16);
  return fit_registers(p, reach, form) && fit_groups(p, form);
}

// Cycles of the loads from shared memory, by the bank conflicts between slots.
int bank_cycles(bool weight, int slots, int runs, int run_bytes,
                int strip_bytes) {
  const int width = weight ? 16 : 8, at_once = weight ? 8 : 4, words = weight ? 1 : 4;
  int cycles = 0;
  for (int first = 0; first < std::min(slots, 64); first += at_once) {
    std::array<int, 16> used{};
    for (int i = first; i < std::min(slots, first + at_once); ++i) {
      const int at = i % runs * run_bytes + i / runs * strip_bytes;
      for (int word = 0; word < words; ++word) ++used[(at / width + word) % (128 / width)];
    }
    cycles += *std::max_element(used.begin(), used.end());
  }
  return cycles;
}

// The pitch of a row in shared memory, in bytes, padded for the fewest bank conflicts.
int best_pitch(bool weight, int slots, int runs, int rows_of_run,
               int strip_bytes, int needed) {
  int best = 0, least = std::numeric_limits<int>::max();
  for (int extra = 0; extra < 128; extra += 16) {
    const int pitch = divided_up(needed, 16) * 16 + extra;
    const int cycles = bank_cycles(weight, slots, runs, rows_of_run * pitch, strip_bytes);
    if (cycles < least) {
      least = cycles;
      best = pitch;
    }
  }
  return best;
}

// The pitch of a group: each group begins 16 bytes further into the banks than the one before.
int group_pitch(int rows, int row_pitch) {
  const int bytes = rows * row_pitch;
  return bytes + (128 + 16 - bytes % 128) % 128;
}

// Sizes of a block's part of the target, and the shared memory that it needs.
struct Part {
  StagedPart source, target;
  int runs, strips, target_offset, zeros_offset, shared_bytes;
};

// `lean`: with the smallest pitches, which are faster to compute.
Part part_of(const GroupedProblem& p, const Form& form, int runs, int strips, bool lean) {
  const Reach reach = reach_of(p);
  const bool weight = is_weight(p.task);
  Part part{};
  part.runs = runs;
  part.strips = strips;
  const int targets = runs * form.run, slots = runs * strips;
  part.source.rows = weight ? p.stride * (targets - 1) + form.rows * form.splits
                            : reach.seen(targets);
  part.source.cols = reach.step(form.strip) * (strips - 1) +
                     divided_up(16 * form.steps, form.source);
  if (form.source == 1) part.source.cols += part.source.cols % 2;
  const auto pitch = [&](int rows_of_run, int strip_bytes, int needed) {
    return lean ? divided_up(needed, 16) * 16
                : best_pitch(weight, slots, runs, rows_of_run, strip_bytes, needed);
  };
  part.source.row_pitch = pitch(reach.step(form.run), 2 * form.source * reach.step(form.strip),
                                2 * form.source * part.source.cols);
  part.source.group_pitch = group_pitch(part.source.rows, part.source.row_pitch);
  part.target.rows = targets;
  part.target.cols = strips * form.strip;
  part.target_offset = form.groups * part.source.group_pitch;
  const int row_bytes = 2 * form.target * part.target.cols;
  if (weight) {
    part.target.row_pitch = pitch(form.run, 2 * form.target * form.strip, row_bytes);
    part.target.group_pitch = group_pitch(targets, part.target.row_pitch);
    part.zeros_offset = part.target_offset + form.groups * part.target.group_pitch;
    part.shared_bytes = std::max(part.zeros_offset + 2 * form.strip * form.target,
                                 form.warps() * 64 * form.steps * (8 * form.tiles + 1));
  } else {
    part.target.row_pitch = form.groups * row_bytes;
    part.shared_bytes = part.target_offset + targets * part.target.row_pitch;
  }
  return part;
}

// Matrix products and operand loads of a warp for 16 slots.
std::array<int, 2> counted(const GroupedProblem& p, const Form& form) {
  const Reach reach = reach_of(p);
  const int rows = is_weight(p.task) ? form.rows : p.kernel;
  const int from = is_weight(p.task) ? p.stride * (form.run - 1) + rows : reach.seen(form.run);
  int products = 0;
  for (int j = 0; j < from; ++j) {
    for (int r = 0; r < form.run; ++r) products += reach.belongs(j, r, rows);
  }
  return {products * form.steps * form.tiles, from * form.steps};
}

struct Choice { Form form; Part part; double cycles; int row_blocks, col_blocks; };

Choice choose(const GroupedProblem& p, const CudaDevice& device) {
  Choice best{};
  Form& form = best.form;
  find_form(p, form);
  const bool on_x = p.task == GroupedTask::kGradInput;
  const int rows = on_x ? p.rows : (p.rows - 1) / p.stride + 1;
  const int cols = on_x ? p.cols : (p.cols - 1) / p.stride + 1;
  const auto [products, loads] = counted(p, form);
  const double slots_cycles = form.warps() * std::max(products / kProducts, 4. * loads);
  const int64_t limit = std::min(device.shared_per_block,
                                 device.shared_per_multiprocessor / form.blocks() - 1024);
  best.cycles = std::numeric_limits<double>::max();
  const int most_runs = divided_up(rows, form.run), most_strips = divided_up(cols, form.strip);
  // Numbers of blocks that lead to the same part size are skipped.
  for (int row_blocks = 1, runs = most_runs, before = 0; row_blocks <= most_runs;
       ++row_blocks, runs = divided_up(most_runs, row_blocks)) {
    if (std::exchange(before, runs) == runs) continue;
    for (int col_blocks = 1, strips = most_strips, last = 0; col_blocks <= most_strips;
         ++col_blocks, strips = divided_up(most_strips, col_blocks)) {
      if (std::exchange(last, strips) == strips || int64_t(runs) * strips > 1024) continue;
      const int down = divided_up(most_runs, runs), across = divided_up(most_strips, strips);
      for (const bool lean : {true, false}) {
        const Part part = part_of(p, form, runs, strips, lean);
        const double cycles = double(down) * across *
                              (divided_up(runs * strips, 16) * slots_cycles +
                               part.shared_bytes / kBytes + kBetween / form.blocks());
        if (part.shared_bytes > limit || cycles >= best.cycles) break;
        if (!lean) {
          best.part = part;
          best.cycles = cycles;
          best.row_blocks = down;
          best.col_blocks = across;
        }
      }
    }
  }
  return best;
}

std::string defines_of(const GroupedProblem& p, const Form& form) {
  std::string text;
  const auto add = [&](const char* name, int value) {
    text += (text.empty() ? "-D" : " -D") + std::string(name) + '=' + std::to_string(value);
  };
  add("STORAGE", p.storage);
  add("SOURCE_CHANNELS", form.source);
  add("TARGET_CHANNELS", form.target);
  add("KERNEL", p.kernel);
  add("STRIDE", p.stride);
  add("STRIP", form.strip);
  add("RUN", form.run);
  add("GROUPS", form.groups);
  add("TILES", form.tiles);
  add("PARTS", form.parts);
  add("THREADS", 32 * form.warps());
  add("BLOCKS", form.blocks());
  if (is_weight(p.task)) {
    add("ROWS", form.rows);
    add("SPLITS", form.splits);
  } else {
    add("TRANSPOSED", p.task == GroupedTask::kGradInput);
    add("BIAS", p.bias);
  }
  return text;
}

}  // namespace

std::string grouped_refusal(int in, int out, int groups, int kernel, int stride) {
  if (kernel % 2 == 0 || kernel < 3 || kernel > 9) {
    return "it supports kernel sizes 3, 5, 7 and 9, not " + std::to_string(kernel);
  }
  if (stride != 1 && stride != 2) {
    return "it supports strides 1 and 2, not " + std::to_string(stride);
  }
  for (const int channels : {in, out}) {
    if (channels != 1 && channels % 2) {
      return "an odd number of channels per group, " + std::to_string(channels);
    }
    if (groups * channels % 8) {
      return std::to_string(groups * channels) + " channels are not a multiple of 8";
    }
  }
  for (const auto task : {GroupedTask::kForward, GroupedTask::kGradInput,
                          GroupedTask::kGradWeight}) {
    Form form;
    if (!find_form({task, 2, in, out, groups, kernel, stride, 1, 8, 8, 0}, form)) {
      return std::to_string(groups) + " groups of " + std::to_string(in) + " and " +
             std::to_string(out) + " channels and a kernel of " + std::to_string(kernel) +
             " do not fit in registers and shared memory";
    }
  }
  return "";
}

double grouped_microseconds(const GroupedProblem& problem, const CudaDevice& device) {
  const Choice choice = choose(problem, device);
  return choice.cycles * problem.batch * (problem.groups / choice.form.groups) /
         (kClock * device.multiprocessors);
}

GroupedPlan plan_grouped(const GroupedProblem& p, const CudaDevice& device) {
  const Choice choice = choose(p, device);
  const Form& form = choice.form;
  GroupedPlan plan{};
  GroupedParameters& q = plan.parameters;
  q.batch = p.batch;
  q.groups = p.groups;
  q.runs = choice.part.runs;
  q.strips = choice.part.strips;
  q.row_blocks = choice.row_blocks;
  q.col_blocks = choice.col_blocks;
  q.source_part = choice.part.source;
  q.target_part = choice.part.target;
  q.target_offset = choice.part.target_offset;
  q.zeros_offset = choice.part.zeros_offset;
  const int64_t items = int64_t(p.batch) * q.row_blocks * q.col_blocks;
  const int sets = p.groups / form.groups;
  const int64_t together =
      std::max(1, device.multiprocessors * form.blocks() / std::max(1, sets));
  const int64_t each = std::max<int64_t>(1, (items + together - 1) / together);
  // No part fits if the GPU has too little shared memory.
  plan.parts = items ? static_cast<int>((items + each - 1) / each) : 0;
  const bool weight = is_weight(p.task);
  plan.main = {weight ? "grouped_weight.cu" : "grouped_map.cu", defines_of(p, form),
               weight ? "grouped_weight" : "grouped_map",
               {static_cast<unsigned>(plan.parts), static_cast<unsigned>(sets), 1},
               static_cast<unsigned>(32 * form.warps()),
               static_cast<unsigned>(choice.part.shared_bytes), {}};
  if (weight) {
    const int elements = p.groups * p.in * p.out * p.kernel * p.kernel;
    plan.sum = {"grouped_sum.cu",
                "-DSTORAGE=" + std::to_string(p.storage) + " -DKERNEL=" +
                    std::to_string(p.kernel) + " -DSOURCE_CHANNELS=" + std::to_string(p.in) +
                    " -DTARGET_CHANNELS=" + std::to_string(p.out),
                "grouped_sum", {static_cast<unsigned>(divided_up(elements, 128)), 1, 1}, 128, 0,
                {}};
  }
  return plan;
}

}  // namespace mmcontext
