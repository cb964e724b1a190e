// Per-thread scratch memory. A plan books every buffer that its kernels need in one ledger, which
// adds up the total size; the kernels look each buffer up at its booked offset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "parallel.h"

#if defined(__SANITIZE_ADDRESS__)
#define MMCONTEXT_GUARDS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MMCONTEXT_GUARDS 1
#endif
#endif
#ifdef MMCONTEXT_GUARDS
#include <sanitizer/asan_interface.h>
#endif

namespace mmcontext {

// Scratch layout of one thread, in bytes. Every buffer is aligned to 64 bytes; under the address
// sanitizer the gaps between buffers are poisoned.
class Ledger {
 public:
  template <class T> Buffer book(int64_t count) { return book_bytes(count * sizeof(T)); }

  Buffer book_bytes(size_t bytes) {
    const Buffer buffer{end_};
#ifdef MMCONTEXT_GUARDS
    ends_.push_back(buffer.begin + bytes);
#endif
    end_ = line_after(buffer.begin + bytes);
    return buffer;
  }

  size_t bytes() const { return end_; }

  void guard(char* scratch) const {
#ifdef MMCONTEXT_GUARDS
    for (const size_t end : ends_) {
      ASAN_POISON_MEMORY_REGION(scratch + end, line_after(end) - end);
    }
#endif
  }

  void unguard(char* scratch) const {
#ifdef MMCONTEXT_GUARDS
    ASAN_UNPOISON_MEMORY_REGION(scratch, end_);
#endif
  }

 private:
  static constexpr size_t kLine = 64;
#ifdef MMCONTEXT_GUARDS
  static constexpr size_t kGuard = kLine;
  std::vector<size_t> ends_;           // of the buffers
#else
  static constexpr size_t kGuard = 0;
#endif
  size_t end_ = 0;

  static size_t line_after(size_t end) { return (end + kGuard + kLine - 1) / kLine * kLine; }
};

// Memory of one thread, aligned to 64 bytes.
class Scratch {
 public:
  char* at_least(size_t wanted) {
    if (wanted > bytes_) {
      data_.reset(new char[wanted + 63]);
      bytes_ = wanted;
    }
    const auto address = reinterpret_cast<uintptr_t>(data_.get());
    return data_.get() + ((address + 63) / 64 * 64 - address);
  }

 private:
  std::unique_ptr<char[]> data_;
  size_t bytes_ = 0;
};

// Scratch up to this size is kept between calls; anything larger is freed after the call.
constexpr size_t kKeptScratch = size_t(4) << 20;
inline thread_local Scratch kept_scratch;

// Runs all units of a plan, each thread with its own scratch.
template <class Plan>
void run_units(const Plan& plan, const Ledger& ledger, Kernel<Plan>* kernel) {
  parallel_for(plan.units, [&](int64_t begin, int64_t end) {
    Scratch for_this_call;
    Scratch& scratch = ledger.bytes() <= kKeptScratch ? kept_scratch : for_this_call;
    char* memory = scratch.at_least(ledger.bytes());
    ledger.guard(memory);
    kernel(plan, begin, end, memory);
    ledger.unguard(memory);
  });
}

}  // namespace mmcontext
