#include "cuda_variant.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace mmcontext {
namespace {

constexpr int64_t kMost = int64_t(1) << 31;    // elements of a sample that 32 bits can address
constexpr int kStages = 3;                     // kernel rows of w in shared memory

Divisor divisor(int64_t by) {
  return {static_cast<int>(by), static_cast<unsigned>(ceil_div(int64_t(1) << 31, by))};
}

// Shared-memory tile for quads whose first pixels are `step` apart and whose rows are `row_step`
// apart. The pitches put neighbouring quads in different banks, across the ends of rows and groups
// too.
MapTile map_tile(const Variant& v, int layout, int rows, int pixels, int step, int row_step,
                 const Tile& tile, int64_t first_col) {
  MapTile to{};
  to.rows = rows;
  to.pixels = pixels;
  const int advance = step * v.units() + 1;              // units from quad to quad
  const auto bumped = [](int pitch, int times, int wanted) {
    for (int bump = 0; bump < 8; ++bump) {
      if (((pitch + bump) * times - wanted) % 8 == 0) return pitch + bump;
    }
    return pitch;
  };
  to.row_pitch = bumped(pixels * v.units() + (pixels - 1) / step, row_step,
                        advance * tile.quads);
  to.group_pitch = v.groups_inside()
      ? bumped(rows * to.row_pitch, 1, tile.groups < 8 ? 8 / tile.groups : 1)
      : bumped(rows * to.row_pitch, 1, advance * tile.quads * tile.rows);
  const bool aligned = tile.quads * step % 4 == 0;
  const int before = aligned ? static_cast<int>(first_col & 3) : 3;
  to.blocks = divisor(layout ? pixels : (before + pixels + 3) / 4);
  to.lines = divisor(rows);
  return to;
}

bool aligned(const CudaOperand& of, int bytes, int elements, bool taps) {
  return of.address % (int64_t(bytes) * elements) == 0 && of.batch % elements == 0 &&
         of.channel % elements == 0 && of.row % elements == 0 && (!taps || of.tap % elements == 0);
}

// Columns that are loaded or stored at once; 0 if the row is not contiguous.
int columns_at_once(const CudaOperand& of, int bytes, int64_t cols, bool taps) {
  if (of.col != 1) return 0;
  for (int elements : {4, 2}) {
    if (cols % elements == 0 && aligned(of, bytes, elements, taps)) return elements;
  }
  return 1;
}

// Layout of a map and how many columns, or groups, are loaded at once. False if no loader
// supports it.
bool layout_of(const CudaOperand& of, const Variant& v, const CudaProblem& p, int64_t cols,
               int& layout, int& vector) {
  layout = kPlanar;
  vector = columns_at_once(of, v.bytes(), cols, false);
  if (vector) return true;
  const auto divides = [&](int elements) {
    return of.address % (uint64_t(v.bytes()) * elements) == 0 && of.batch % elements == 0 &&
           of.row % elements == 0 && of.col % elements == 0;
  };
  const int64_t per_group = p.channels / p.groups;
  if (of.channel != 1) return false;
  if (!p.interleaved || p.groups == 1 || per_group == 1) {
    layout = kLast;
    vector = 1;
    return per_group % v.unit() == 0 && divides(v.unit());
  }
  layout = kMixed;
  vector = v.unit();
  while (vector > 1 && (p.groups % vector || !divides(vector))) vector /= 2;
  return true;
}

bool within_32_bits(const CudaOperand& of, int64_t channels, int64_t taps, int64_t rows,
                    int64_t cols) {
  for (int64_t stride : {of.channel, of.tap, of.row, of.col}) {
    if (stride < 0 || stride >= kMost) return false;
  }
  return channels * of.channel + taps * of.tap + rows * of.row + cols * of.col < kMost;
}

}  // namespace

int64_t lay_out(const Variant& v, const Tile& tile, int64_t pad_w, TiledParameters& to) {
  to.tile_rows = tile.rows;
  to.tile_quads = tile.quads;
  to.tile_groups = tile.groups;
  const int first = v.back() ? -((v.dilation * (v.kernel - 1) - v.pad()) / v.stride)
                             : -static_cast<int>(pad_w & 3);
  to.map = map_tile(v, v.source_layout, v.rows(tile.rows), v.pixels(tile.quads), v.quad(),
                    v.back() ? 1 : v.stride, tile, first);
  to.units = divisor(tile.groups * v.units());
  to.kernel_offset = 16 * tile.groups * to.map.group_pitch;
  if (v.task == 2) {
    to.gradient = map_tile(v, v.other_layout, tile.rows, 4 * tile.quads, 4, 1, tile, 0);
    return to.kernel_offset + 16 * tile.groups * to.gradient.group_pitch;
  }
  const int quads = tile.quads + (v.back() ? 1 : 0);
  to.piece_cols = divisor(quads * v.wide() / v.kernel_vector);
  to.piece_rows = divisor(tile.rows);
  const bool inside = v.groups_inside();
  to.quad_pitch = inside ? tile.groups * v.wide() : v.wide();
  to.line_pitch = quads * to.quad_pitch;
  to.group_pitch = inside ? v.wide() : tile.rows * to.line_pitch;
  to.tap_pitch = tile.groups * tile.rows * quads * v.wide();
  to.stage_pitch = v.kernel * to.tap_pitch;
  return to.kernel_offset + int64_t(kStages) * to.stage_pitch * v.bytes();
}

// Estimated cycles by counting. Per cycle a multiprocessor moves 20 bytes of global and 128 bytes
// of shared memory and does 128 multiply-adds (a warp's instruction takes a quarter of a cycle).
double cycles(const Variant& v, const CudaProblem& p, const CudaDevice& device, const Tile& tile) {
  TiledParameters laid{};
  const int64_t shared = lay_out(v, tile, p.pad_w, laid);
  const int64_t quads = int64_t(tile.rows) * tile.quads * tile.groups;
  const int64_t warps = ceil_div(quads * v.sharers(), 32);
  if (shared > device.shared_per_block || warps * 32 > v.threads()) return -1;
  const int64_t items = std::max(int64_t(laid.map.blocks.by) * laid.map.rows,
                                 int64_t(laid.map.pixels) * laid.map.rows) *
                        tile.groups * v.units();
  if (items > 65535) return -1;
  const int64_t resident = std::min<int64_t>(
      {device.shared_per_multiprocessor / (shared + 1024), 65536 / v.registers() / 32 / warps, 32});
  if (resident < 1) return -1;
  const int64_t to_rows = v.back() ? p.in_rows : p.out_rows;
  const int64_t to_cols = v.back() ? p.in_cols : p.out_cols;
  const int64_t per_group = p.channels / p.groups;
  const int64_t chunks = v.task == 2 ? 1 : ceil_div(per_group, v.channels);
  const int64_t blocks = ceil_div(to_rows, tile.rows) * ceil_div(ceil_div(to_cols, 4), tile.quads) *
                         ceil_div(p.groups, tile.groups) * chunks * p.batch;
  const double taps = double(v.kernel) * v.kernel;
  const double fetched = v.bytes() *
      (double(tile.groups) * v.channels * laid.map.rows * laid.map.pixels +
       quads * 4.0 * (v.channels + taps / (v.back() ? v.stride * v.stride : 1)));
  // Shared memory: wavefronts per warp in one step. Tasks 0 and 1: the pixels of its channels, w
  // read and written; task 2: pixels and gradients, unit by unit.
  const int64_t window = v.pixels(1);
  const double accesses = v.task == 2
      ? v.units() * (window + 4) * 4.0
      : v.steps() * (window * v.part / v.unit() * 4.0 +
                     v.kernel * v.wide() * v.bytes() / 4.0 * (v.back() ? 2.5 : 1.5));
  const double widened = v.bytes() == 2 ? window * (v.task == 2 ? v.channels : v.part * v.steps())
                                        : 0;
  const double adds = v.task == 2 ? v.kernel * 4.0 * v.channels
                                  : v.part * 4.0 * taps / (v.back() ? v.stride * v.stride : 1);
  const double issued = 1.2 * (adds + widened) / 4;
  const double busy = warps * std::max(accesses, issued);
  const double one = std::max(busy, fetched / 20);
  const double alone = 2500 + 6 * (adds + widened) / 4 + accesses;
  const double on_each = double(blocks) / device.multiprocessors;
  const double waves = std::max(1.0, on_each / resident);
  const double rounds = waves < 4 ? std::ceil(waves - 1e-9) : waves;
  return rounds * std::max(alone, std::min<double>(resident, std::max(1.0, on_each)) * one);
}

std::vector<Candidate> candidates(const Variant& v, const CudaProblem& p,
                                  const CudaDevice& device) {
  const int64_t to_rows = v.back() ? p.in_rows : p.out_rows;
  const int64_t to_quads = ceil_div(v.back() ? p.in_cols : p.out_cols, 4);
  const int64_t most = v.threads() / v.sharers();
  std::vector<Candidate> all;
  for (int64_t parts = 1, before = 0; parts <= to_quads; ++parts) {
    const int64_t quads = ceil_div(to_quads, parts);
    if (quads > most || quads == before) continue;
    if (quads < 4 && !all.empty()) break;
    before = quads;
    for (int64_t rows = 1; rows <= std::min(most / quads, to_rows); ++rows) {
      const int64_t groups_most = std::min(most / quads / rows, p.groups);
      for (int64_t groups = v.groups_at_once(); groups <= groups_most; groups *= 2) {
        const Tile tile{static_cast<int>(rows), static_cast<int>(quads), static_cast<int>(groups)};
        const double cost = cycles(v, p, device, tile);
        if (cost >= 0) all.push_back({tile, cost});
      }
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Candidate& a, const Candidate& b) { return a.cycles < b.cycles; });
  return all;
}

bool choose_variant(const CudaProblem& p, Variant& v) {
  if (p.storage == Storage::kDouble || p.kernel_h != p.kernel_w || p.stride_h != p.stride_w ||
      p.dilation_h != p.dilation_w) {
    return false;
  }
  v = Variant{};
  v.task = static_cast<int>(p.task);
  v.storage = static_cast<int>(p.storage);
  v.kernel = static_cast<int>(p.kernel_h);
  v.stride = static_cast<int>(p.stride_h);
  v.dilation = static_cast<int>(p.dilation_h);
  if ((p.kernel_h != 3 && p.kernel_h != 5 && p.kernel_h != 7) || p.stride_h > 2 ||
      p.dilation_h > 2 || (v.back() && (p.pad_h != v.pad() || p.pad_w != v.pad()))) {
    return false;
  }
  const int64_t per_group = p.channels / p.groups, taps = p.kernel_h * p.kernel_w;
  const int64_t wasted_by_16 = ceil_div(per_group, 16) * 16, by_8 = ceil_div(per_group, 8) * 8;
  v.channels = wasted_by_16 == by_8 ? 16 : 8;
  v.part = 8;
  const bool weight = v.task == 2;
  const CudaOperand& other = weight ? p.kernel : p.target;   // the other map
  const CudaOperand& kernels = weight ? p.target : p.kernel;
  const int64_t source_rows = v.back() ? p.out_rows : p.in_rows;
  const int64_t source_cols = v.back() ? p.out_cols : p.in_cols;
  const int64_t other_rows = v.back() ? p.in_rows : p.out_rows;
  const int64_t other_cols = v.back() ? p.in_cols : p.out_cols;
  // The limit of gridDim.y.
  if (p.groups * ceil_div(per_group, v.channels) >= kBatches) return false;
  if (!within_32_bits(p.source, p.channels, 0, source_rows, source_cols) ||
      !within_32_bits(other, p.channels, 0, other_rows, other_cols) ||
      !within_32_bits(kernels, p.groups, taps, p.out_rows, p.out_cols)) {
    return false;
  }
  if (!layout_of(p.source, v, p, source_cols, v.source_layout, v.source_vector) ||
      !layout_of(other, v, p, other_cols, v.other_layout, v.other_vector)) {
    return false;
  }
  v.kernel_vector = std::min(columns_at_once(kernels, v.bytes(), p.out_cols, true), v.wide());
  v.kernels_last = !v.kernel_vector;
  if (v.kernels_last && kernels.tap != 1) return false;
  v.kernel_vector = std::max(v.kernel_vector, 1);
  return true;
}

std::string options(const Variant& v) {
  const std::pair<const char*, int> all[] = {
      {"BLOCKS", v.task == 2 ? 1 : 2}, {"CHANNELS", v.channels}, {"DILATION", v.dilation},
      {"KERNEL", v.kernel}, {"KERNELS_LAST", v.kernels_last}, {"KERNEL_VECTOR", v.kernel_vector},
      {"OTHER_LAYOUT", v.other_layout}, {"OTHER_VECTOR", v.other_vector}, {"PART", v.part},
      {"SOURCE_LAYOUT", v.source_layout}, {"SOURCE_VECTOR", v.source_vector}, {"STAGES", kStages},
      {"STORAGE", v.storage}, {"STRIDE", v.stride}, {"TASK", v.task}, {"THREADS", v.threads()}};
  std::string text;
  for (const auto& option : all) {
    text += std::string(text.empty() ? "-D" : " -D") + option.first + '=' +
            std::to_string(option.second);
  }
  return text;
}

}  // namespace mmcontext
