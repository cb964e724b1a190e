// Large outputs on huge pages.
#pragma once

#include <ATen/ATen.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mmcontext {

// The tensor, not written yet. malloc maps blocks of this size anew each time, and to write them
// for the first time in pages of 4 KiB takes longer than what is computed; advice to the kernel,
// without effect where it knows no huge pages.
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
