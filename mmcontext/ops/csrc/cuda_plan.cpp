#include "cuda_plan.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "cuda_variant.h"

namespace mmcontext {
namespace {

DeviceOperand on_device(const CudaOperand& of) {
  return {of.address, of.batch, of.channel, of.tap, of.row, of.col};
}

CudaLaunch general(const CudaProblem& p, const CudaDevice& device) {
  GeneralParameters to{};
  to.source = on_device(p.source);
  to.kernel = on_device(p.kernel);
  to.target = on_device(p.target);
  const bool to_x = p.task == Task::kGradInput;
  to.count = p.batch * (to_x ? p.in_rows * p.in_cols : p.out_rows * p.out_cols) *
             (p.task == Task::kGradWeight ? p.groups * p.kernel_h * p.kernel_w : p.channels);
  const int64_t fastest = p.task == Task::kGradWeight ? p.target.tap : p.target.channel;
  to.channels_last = fastest < p.target.col;
  const int64_t sizes[] = {p.channels, p.groups, to.channels_last, p.in_rows, p.in_cols,
                           p.out_rows, p.out_cols, p.kernel_h, p.kernel_w, p.stride_h, p.stride_w,
                           p.pad_h, p.pad_w, p.dilation_h, p.dilation_w, p.interleaved};
  int* const places[] = {&to.channels, &to.groups, &to.channels_last, &to.in_rows, &to.in_cols,
                         &to.out_rows, &to.out_cols, &to.kernel_h, &to.kernel_w, &to.stride_h,
                         &to.stride_w, &to.pad_h, &to.pad_w, &to.dilation_h, &to.dilation_w,
                         &to.interleaved};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) *places[i] = static_cast<int>(sizes[i]);
  CudaLaunch launch;
  launch.source = "general.cu";
  launch.defines = "-DSTORAGE=" + std::to_string(static_cast<int>(p.storage)) +
                   " -DTASK=" + std::to_string(static_cast<int>(p.task));
  launch.entry = "aggregate_general";
  launch.block = 256;
  // At most 64 blocks per multiprocessor; beyond that each thread computes several elements.
  launch.grid[0] = static_cast<unsigned>(
      std::min<int64_t>((to.count + 255) / 256, int64_t(device.multiprocessors) * 64));
  launch.grid[1] = launch.grid[2] = 1;
  launch.shared_bytes = 0;
  launch.parameters = bytes_of(to);
  return launch;
}

constexpr const char* kTasks[] = {"forward", "grad_input", "grad_weight"};
constexpr const char* kStorages[] = {"float32", "float64", "bfloat16", "float16"};
constexpr const char* kLayouts[] = {"planar", "last", "mixed"};

// Task, storage, kernel, stride, dilation, layout, channels, rows, columns, groups.
using TileKey = std::array<int64_t, 10>;

TileKey tile_key(const Variant& v, const CudaProblem& p) {
  return {v.task, v.storage, v.kernel, v.stride, v.dilation, v.source_layout, v.channels,
          v.back() ? p.in_rows : p.out_rows, v.back() ? p.in_cols : p.out_cols, p.groups};
}

struct Choice { Tile tile; std::string options; };

std::vector<CudaLaunch> tiled(const CudaProblem& p, const Variant& v, const Choice& choice) {
  const Tile& tile = choice.tile;
  TiledParameters to{};
  const int64_t shared = lay_out(v, tile, p.pad_w, to);
  to.source = on_device(p.source);
  to.kernel = on_device(p.kernel);
  to.target = on_device(p.target);
  const int64_t per_group = p.channels / p.groups;
  const int64_t chunks = v.task == 2 ? 1 : ceil_div(per_group, v.channels);
  const int64_t to_rows = v.back() ? p.in_rows : p.out_rows;
  const int64_t to_cols = v.back() ? p.in_cols : p.out_cols;
  const int64_t col_tiles = ceil_div(ceil_div(to_cols, 4), tile.quads);
  const std::pair<int*, int64_t> sizes[] = {
      {&to.source_rows, v.back() ? p.out_rows : p.in_rows},
      {&to.source_cols, v.back() ? p.out_cols : p.in_cols},
      {&to.kernel_rows, p.out_rows}, {&to.kernel_cols, p.out_cols},
      {&to.target_rows, to_rows}, {&to.target_cols, to_cols}, {&to.groups, p.groups},
      {&to.shared, per_group}, {&to.group_step, p.interleaved ? 1 : per_group},
      {&to.channel_step, p.interleaved ? p.groups : 1}, {&to.chunks, chunks},
      {&to.pad_h, p.pad_h}, {&to.pad_w, p.pad_w}, {&to.col_tiles, col_tiles}};
  for (const auto& size : sizes) *size.first = static_cast<int>(size.second);
  CudaLaunch launch;
  launch.source = "local_aggregation.cu";
  launch.defines = choice.options;
  launch.entry = "aggregate_tiled";
  const int64_t threads = int64_t(tile.rows) * tile.quads * tile.groups * v.sharers();
  launch.block = static_cast<unsigned>(ceil_div(threads, 32) * 32);
  launch.shared_bytes = static_cast<unsigned>(shared);
  launch.grid[0] = static_cast<unsigned>(ceil_div(to_rows, tile.rows) * col_tiles);
  launch.grid[1] = static_cast<unsigned>(ceil_div(p.groups, tile.groups) * chunks);
  std::vector<CudaLaunch> launches;
  for (int64_t first = 0; first < p.batch; first += kBatches) {
    launch.grid[2] = static_cast<unsigned>(std::min(kBatches, p.batch - first));
    launch.parameters = bytes_of(to);
    launches.push_back(launch);
    for (DeviceOperand* of : {&to.source, &to.kernel, &to.target}) {
      of->address += kBatches * of->batch * v.bytes();
    }
  }
  return launches;
}

std::mutex guard;
std::map<TileKey, Tile> tuned;
// Choices made so far, by variant, sizes, batch and device.
std::map<std::array<int64_t, 22>, Choice> chosen;

Choice choose(const Variant& v, const CudaProblem& p, const CudaDevice& device) {
  const TileKey key = tile_key(v, p);
  std::array<int64_t, 22> all{p.batch, p.channels, v.part, v.other_layout, v.kernels_last,
                              v.source_vector, v.other_vector, v.kernel_vector, p.pad_w & 3,
                              device.multiprocessors, device.shared_per_block,
                              device.shared_per_multiprocessor};
  std::copy(key.begin(), key.end(), all.begin() + 12);
  const std::lock_guard<std::mutex> lock(guard);
  const auto known = chosen.find(all);
  if (known != chosen.end()) return known->second;
  const auto wanted = tuned.find(key);
  Choice choice{{0, 0, 0}, options(v)};
  if (wanted != tuned.end() && wanted->second.groups % v.groups_at_once() == 0 &&
      cycles(v, p, device, wanted->second) >= 0) {
    choice.tile = wanted->second;
  } else {
    const std::vector<Candidate> best = candidates(v, p, device);
    if (!best.empty()) choice.tile = best.front().tile;
  }
  // Bounded, in case every input has a new size.
  if (chosen.size() > 4096) chosen.clear();
  return chosen[all] = choice;
}

// Index of a word among names, or -1.
template <size_t kCount>
int64_t index_of(const std::string& word, const char* const (&names)[kCount]) {
  const auto found = std::find(std::begin(names), std::end(names), word);
  return found == std::end(names) ? -1 : found - std::begin(names);
}

std::pair<TileKey, Tile> parse_tile(const std::string& line, int number) {
  const auto wrong = [&](const std::string& what) {
    return std::invalid_argument("line " + std::to_string(number) + " of the tiles: " + what +
                                 " in '" + line + "'");
  };
  std::istringstream words(line);
  std::string task, storage, layout, rest;
  TileKey key;
  Tile tile;
  if (!(words >> task >> storage >> key[2] >> key[3] >> key[4] >> layout >> key[6] >> key[7] >>
        key[8] >> key[9] >> tile.rows >> tile.quads >> tile.groups) || words >> rest) {
    throw wrong("expected 3 names and 10 numbers");
  }
  key[0] = index_of(task, kTasks);
  key[1] = index_of(storage, kStorages);
  key[5] = index_of(layout, kLayouts);
  if (key[0] < 0) throw wrong("unknown task");
  if (key[1] < 0 || key[1] == 1) throw wrong("unknown storage");
  if (key[5] < 0) throw wrong("unknown layout");
  for (int extent : {tile.rows, tile.quads, tile.groups}) {
    if (extent < 1 || extent > 512) throw wrong("a tile's extent outside of 1 to 512");
  }
  return {key, tile};
}

}  // namespace

std::vector<CudaLaunch> plan_cuda(const CudaProblem& problem, const CudaDevice& device) {
  Variant variant;
  if (choose_variant(problem, variant)) {
    const Choice choice = choose(variant, problem, device);
    if (choice.tile.rows) return tiled(problem, variant, choice);
  }
  return {general(problem, device)};
}

void set_cuda_tiles(const std::string& text) {
  std::map<TileKey, Tile> tiles;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    line.resize(std::min(line.size(), line.find('#')));
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    tiles.insert(parse_tile(line, number));
  }
  const std::lock_guard<std::mutex> lock(guard);
  tuned = tiles;
  chosen.clear();
}

std::vector<CudaTile> cuda_tiles(const CudaProblem& problem, const CudaDevice& device) {
  Variant variant;
  if (!choose_variant(problem, variant)) return {};
  const TileKey key = tile_key(variant, problem);
  std::vector<CudaTile> tiles;
  for (const Candidate& one : candidates(variant, problem, device)) {
    std::ostringstream line;
    line << kTasks[key[0]] << ' ' << kStorages[key[1]] << ' ' << key[2] << ' ' << key[3] << ' '
         << key[4] << ' ' << kLayouts[key[5]];
    for (size_t i = 6; i < key.size(); ++i) line << ' ' << key[i];
    line << "  " << one.tile.rows << ' ' << one.tile.quads << ' ' << one.tile.groups;
    tiles.push_back({line.str(), one.cycles / 1700});
  }
  return tiles;
}

}  // namespace mmcontext
