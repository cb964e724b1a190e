// The launches of cuda/channel_gate.cu.
#include "channel_gate.h"

#include <algorithm>
#include <vector>

#include "cuda/channel_gate.cuh"
#include "gpu.h"
#include "gpu_maps.h"
#include "local_aggregation.h"
#include "work.h"

namespace mmcontext {
namespace {

enum class Pass { kSums, kMeans, kResult, kGradientSums, kGradientOfFactor, kGradient };

constexpr int64_t kThreads = 256;
// Blocks per multiprocessor in passes that write partial sums, and in those that write maps.
constexpr int64_t kSummingBlocks = 4, kWritingBlocks = 12;

struct Form { int storage, factor, gate; bool other; };

// How the maps are divided among blocks.
struct Division { int64_t lanes, tiles, blocks; };

Division divide(const Tensor& x, bool sums) {
  const int64_t vectors = x.size(1) * x.element_size() / 16, pixels = x.size(2) * x.size(3);
  const int64_t lanes = std::min<int64_t>(vectors, 32), tiles = ceil_div(vectors, lanes);
  const int64_t turns = ceil_div(pixels, kThreads / lanes);
  const int64_t wanted = gpu_limits(gpu_index(x)).multiprocessors *
                         (sums ? kSummingBlocks : kWritingBlocks) / (tiles * x.size(0));
  // A second launch that adds up partial sums costs more than a few extra iterations.
  const int64_t most = sums && turns <= 32 ? 1 : ceil_div(turns, 4);
  return {lanes, tiles, std::max<int64_t>(1, std::min(wanted, most))};
}

// Passes over a pair of maps: their parameters and their launches, in order.
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

  // One launch, or two if an image is divided among several blocks.
  void add_sums(Pass pass) {
    const Division division = divide(of_, true);
    if (division.blocks > 1) {
      partial_ = empty_floats({division.blocks, of_.size(0), of_.size(1)}, of_);
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
    // Options that a pass does not depend on are fixed, so that no kernel is compiled twice.
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

}  // namespace

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

}  // namespace mmcontext
