// One task of the local aggregation as the kernels see it: plain data, the same for every
// algorithm. This header is compiled for every instruction set: nothing in it may be instantiated
// with wider instructions than the machine has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmcontext {

enum class Storage { kFloat, kDouble, kBFloat16, kHalf };

enum class Task { kForward, kGradInput, kGradWeight };

// A tensor seen as [batch, channel or group, tap, row, column], strides in elements.
struct Operand {
  char* data;
  const char* begin;  // the memory that may be read: [begin, end)
  const char* end;
  int64_t batch, channel, tap, row, col;
};

struct Aggregation {
  Task task;
  Storage storage;
  int64_t element_bytes;
  bool interleaved;
  Operand source, kernel, target;      // see run_on_cpu
  int64_t batch, groups, shared;       // shared: channels per group
  int64_t group_step, channel_step;    // channel = group * group_step + i * channel_step
  int64_t src_rows, src_cols, ker_rows, ker_cols, out_rows, out_cols;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Offset of a buffer in a thread's scratch, booked by a plan (scratch.h).
struct Buffer {
  size_t begin;
};

}  // namespace mmcontext
