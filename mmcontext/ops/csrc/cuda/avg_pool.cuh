// The by-value parameter of the kernels in avg_pool.cu.
#pragma once

namespace mmcontext {

struct AvgPoolParameters {
  unsigned long long source, target;       // maps [batch, rows, columns, vectors of 16 bytes]
  int count, vectors;                      // count: vectors of the target
  int rows, cols, out_rows, out_cols;      // of the pooled map, of the result
  int pad_h, pad_w;
  int include_pad;                         // whether padding counts in the mean
};

}  // namespace mmcontext
