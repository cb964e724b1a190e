// Large outputs on huge pages.
#pragma once

#include <ATen/ATen.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mmcontext {

// Advises the operating system to back a tensor that is not written yet with huge pages. malloc
// maps blocks of this size anew each time, and the page faults of the first write take longer in
// pages of 4 KiB than the computation. Without effect where huge pages are not supported.
inline at::Tensor on_huge_pages(at::Tensor fresh) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLeast = uintptr_t(32) << 20, kPage = uintptr_t(2) << 20;
  if (fresh.nbytes() >= kLeast) {
    const auto begin = reinterpret_cast<uintptr_t>(fresh.data_ptr());
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
    const uintptr_t last = (begin + fresh.nbytes()) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return fresh;
}

}  // namespace mmcontext
