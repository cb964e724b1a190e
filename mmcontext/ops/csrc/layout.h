// Memory layouts of maps [B, C, H, W]; mmcontext/ops/layout.py has the same two rules.
#pragma once

#include <ATen/ATen.h>

namespace mmcontext {

// Whether a map's pixels lie one after another, each with all of its channels: what kernels that
// walk by pixels can read.
inline bool lies_by_pixel(const at::Tensor& map) {
  return map.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// The layout of a map, which what is made from it gets too. A map of one channel or of one pixel
// is contiguous and channels-last at once: it counts as contiguous.
inline at::MemoryFormat layout_of(const at::Tensor& map) {
  return !map.is_contiguous() && lies_by_pixel(map) ? at::MemoryFormat::ChannelsLast
                                                    : at::MemoryFormat::Contiguous;
}

}  // namespace mmcontext
