// The tiled CUDA kernels as the planner sees them: compile-time parameters and the cost of a tile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/parameters.cuh"
#include "cuda_plan.h"
#include "work.h"

namespace mmcontext {

constexpr int64_t kBatches = 65535;              // per launch: the limit of gridDim.y and .z

// Layouts of a map, as in cuda/tile.cuh.
constexpr int kPlanar = 0, kLast = 1, kMixed = 2;

// What is compiled into a tiled kernel, and what follows from it.
struct Variant {
  int task, storage, kernel, stride, dilation, channels, part;
  int source_layout, other_layout;     // kPlanar, kLast, kMixed
  bool kernels_last;
  int source_vector, other_vector, kernel_vector;

  bool back() const { return task == 1; }
  int bytes() const { return storage == 0 ? 4 : 2; }
  int unit() const { return 16 / bytes(); }
  int units() const { return channels / unit(); }
  int wide() const { return back() ? 4 / stride : 4; }
  int quad() const { return back() ? 4 / stride : 4 * stride; }
  int pad() const { return dilation * (kernel - 1) / 2; }
  // Threads per quad: one for each part of its channels, or for each row of taps.
  int sharers() const { return task == 2 ? kernel : channels / part; }
  // Approximate registers per thread, for the cost estimate; tools/benchmarks/inspect_kernels.py
  // reports the exact numbers.
  int registers() const { return task == 2 ? 112 : bytes() == 4 ? 104 : 80; }
  int threads() const { return task == 2 ? 512 : 256; }
  // The number of groups in a block is a multiple of this.
  int groups_at_once() const {
    return std::max(source_layout == kMixed ? source_vector : 1,
                    other_layout == kMixed ? other_vector : 1);
  }
  // Whether neighbouring threads work on neighbouring groups.
  bool groups_inside() const { return task != 2 && other_layout == kMixed; }
  int steps() const {
    const int step = back() && dilation % stride ? stride : 1;
    return (kernel + step - 1) / step;
  }
  // Source columns that so many quads read, and source rows that so many target rows read.
  int pixels(int quads) const {
    const int reach = (kernel - 1) * dilation;
    return (quads - 1) * quad() + (back() ? (reach + 3) / stride + 1 : 3 * stride + reach + 1);
  }
  int rows(int count) const {
    const int reach = (kernel - 1) * dilation;
    return back() ? (count + reach + stride - 2) / stride + 1
                  : (count - 1) * stride + reach + 1;
  }
};

struct Tile { int rows, quads, groups; };

struct Candidate { Tile tile; double cycles; };

// Whether a tiled kernel supports the problem; if so, fills in which one.
bool choose_variant(const CudaProblem& problem, Variant& variant);

// Compile options, sorted.
std::string options(const Variant& variant);

// Fills in every field of the kernel parameter that depends on the tile; returns the bytes of
// shared memory needed.
int64_t lay_out(const Variant& variant, const Tile& tile, int64_t pad_w, TiledParameters& to);

// Estimated cycles of the whole launch; negative if the tile does not fit on the device.
double cycles(const Variant& variant, const CudaProblem& problem, const CudaDevice& device,
              const Tile& tile);

// All tiles that fit on the device, best first.
std::vector<Candidate> candidates(const Variant& variant, const CudaProblem& problem,
                                  const CudaDevice& device);

}  // namespace mmcontext
