// Shared by the host and the kernels of grouped convolutions. Plain types only.
#pragma once

namespace mmcontext {

// A channels-last map: address, and strides between samples, rows and pixels in elements.
struct PixelMap {
  unsigned long long address;
  long long batch;
  int row, pixel;
  int rows, cols;
};

// A part of a map in shared memory, [group][row][pixel]. Pitches in bytes.
struct StagedPart {
  int rows, cols;
  int row_pitch, group_pitch;
};

// A block's part of the target is `runs` x `strips` slots; a slot is RUN rows of STRIP columns.
struct GroupedParameters {
  PixelMap source, target;             // for the gradient of w: x and the gradient of y
  unsigned long long weight, bias, partial;
  int weight_out, weight_in, weight_row, weight_col;  // strides of w in elements
  int batch, groups;
  int runs, strips;
  int row_blocks, col_blocks;          // of a sample
  StagedPart source_part, target_part;
  int target_offset, zeros_offset;     // in shared memory, in bytes
  int accumulate;                      // whether the result is added to the target
};

// Adds the parts of the gradient of w.
struct GroupedSumParameters {
  unsigned long long partial, target;  // parts: [parts, group, row, column, in, out]
  int weight_out, weight_in, weight_row, weight_col;
  int parts, count;                    // count: elements of w
};

}  // namespace mmcontext
