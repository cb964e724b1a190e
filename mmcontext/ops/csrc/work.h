// Division of work, and output sizes.
#pragma once

#include <cstdint>

namespace mmcontext {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_to(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Output size of a convolution or aggregation along one axis; 0 if the kernel does not fit.
inline int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad,
                        int64_t dilation) {
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace mmcontext
