// Chooses the CUDA kernel, its tile and its launch configuration for one aggregation. Plain C++:
// no torch, no CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_launch.h"
#include "kernels.h"

namespace mmcontext {

// A tensor on a GPU as [batch, channel or group, tap, row, column], strides in elements (tap 0
// for maps).
struct CudaOperand {
  uint64_t address;
  int64_t batch, channel, tap, row, col;
};

// One aggregation or gradient.
struct CudaProblem {
  Task task;
  Storage storage;
  // forward: x, w, y; grad_input: gy, w, gx; grad_weight: x, gy, gw.
  CudaOperand source, kernel, target;
  int64_t batch, channels, groups;
  int64_t in_rows, in_cols, out_rows, out_cols;  // of x and of y, whatever the task
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool interleaved;
};

// Launches that solve the problem, in order, on one stream. General kernels take what the fast
// ones do not support.
std::vector<CudaLaunch> plan_cuda(const CudaProblem& problem, const CudaDevice& device);

// Sets tuned tiles, which replace the built-in choice and all earlier ones. A line is
//   TASK STORAGE KERNEL STRIDE DILATION LAYOUT CHANNELS ROWS COLS GROUPS  TILE_ROWS QUADS TILE_GROUPS
// for example "forward float32 7 1 1 planar 16 56 56 4  8 7 1": task forward, grad_input or
// grad_weight; storage float32, bfloat16 or float16; layout of the source,
// planar, last or mixed (channels-last with interleaved groups);
// CHANNELS of a group in a tile, 8 or 16; ROWS and COLS of the target; then the tile, in rows,
// quads of 4 columns and groups. '#' begins a comment. A tile that does not fit on a device is
// ignored. Throws std::invalid_argument naming the faulty line.
void set_cuda_tiles(const std::string& text);

struct CudaTile {
  std::string line;                              // in the format of set_cuda_tiles
  double microseconds;                           // estimated by counting, at 1.7 GHz
};

// The tiles that the problem's kernel can use, best estimate first; empty for a general kernel.
std::vector<CudaTile> cuda_tiles(const CudaProblem& problem, const CudaDevice& device);

}  // namespace mmcontext
