// Memory layouts of maps [B, C, H, W]. Keep in step with mmcontext/ops/layout.py.
#pragma once

#include <ATen/ATen.h>

namespace mmcontext {

// Whether a map is dense channels-last, as the kernels that go pixel by pixel require.
inline bool lies_by_pixel(const at::Tensor& map) {
  return map.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// The layout of a map, which results computed from it share. A map with one channel or one pixel
// is both contiguous and channels-last; it counts as contiguous.
inline at::MemoryFormat layout_of(const at::Tensor& map) {
  return !map.is_contiguous() && lies_by_pixel(map) ? at::MemoryFormat::ChannelsLast
                                                    : at::MemoryFormat::Contiguous;
}

}  // namespace mmcontext
