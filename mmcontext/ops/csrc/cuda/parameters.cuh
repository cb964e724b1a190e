// Shared by the planner on the host and the kernels. Plain types only: NVRTC has no headers.
#pragma once

namespace mmcontext {

// A tensor as [batch, channel or group, tap, row, column]: address and strides in elements.
struct DeviceOperand {
  unsigned long long address;
  long long batch, channel, tap, row, col;
};

// The by-value parameter of the general kernels.
struct GeneralParameters {
  DeviceOperand source, kernel, target;
  long long count;                     // elements of the target
  int channels, groups, channels_last; // channels_last: the order in which threads take elements
  int in_rows, in_cols, out_rows, out_cols;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int interleaved;
};

// Division of a number below 65536 by a constant below 32768: the high half of a multiplication.
struct Divisor {
  int by;
  unsigned factor;                     // 2 ** 31 / by, rounded up
};

// A tile of a map in shared memory, the channels of a pixel together, in units of 16 bytes.
struct MapTile {
  int rows, pixels;
  int row_pitch, group_pitch;          // in units
  Divisor blocks;                      // of a row: of 4 columns (planar) or of one pixel
  Divisor lines;                       // rows
};

// The by-value parameter of the tiled kernels. Strides within a sample fit in 32 bits.
struct TiledParameters {
  DeviceOperand source, kernel, target;
  int source_rows, source_cols;        // of the map whose neighbourhoods are read
  int kernel_rows, kernel_cols;        // of the kernels, or of the gradient of y
  int target_rows, target_cols;
  int groups, shared;                  // shared: channels per group
  int group_step, channel_step;        // channel = group * group_step + i * channel_step
  int chunks;                          // blocks that share a group's channels
  int pad_h, pad_w;
  int tile_rows, tile_quads, tile_groups;
  int col_tiles;
  Divisor units;                       // of 16 bytes in the pixel of a block
  MapTile map, gradient;               // source; for the gradient of w also that of y
  Divisor piece_cols, piece_rows;      // of a stage of w: pieces in a row, rows
  int quad_pitch, line_pitch, group_pitch; // of w in shared memory, in elements: quads, rows,
  int tap_pitch, stage_pitch;          // groups, taps, stages
  int kernel_offset;                   // of w in shared memory, or of the gradient, in bytes
};

}  // namespace mmcontext
