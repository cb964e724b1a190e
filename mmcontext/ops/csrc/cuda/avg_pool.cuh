// What a launch of avg_pool.cu gets.
#pragma once

namespace mmcontext {

struct AvgPoolParameters {
  unsigned long long source, target;       // maps [batch, rows, columns, vectors of 16 bytes]
  int count, vectors;                      // count: vectors of the target
  int rows, cols, out_rows, out_cols;      // of the map that is pooled, of the result
  int pad_h, pad_w;
  int include_pad;                         // whether zeros of the padding count
};

}  // namespace mmcontext
