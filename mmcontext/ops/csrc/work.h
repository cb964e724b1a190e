// Division of work, and the scratch of the threads that do it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mmcontext {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Output of a convolution or an aggregation along one axis; 0 where the kernel does not fit.
inline int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad,
                        int64_t dilation) {
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

struct Scratch {
  std::unique_ptr<char[]> data;
  size_t bytes = 0;
  char* at_least(size_t wanted) {
    if (wanted > bytes) {
      data.reset(new char[wanted]);
      bytes = wanted;
    }
    return data.get();
  }
};

// What a thread keeps between calls; larger scratch lives for one call only.
constexpr size_t kKeptScratch = size_t(4) << 20;
inline thread_local Scratch kept_scratch;

// Calls `work` with so many bytes of this thread's own.
template <class Work> void with_scratch(size_t bytes, const Work& work) {
  if (bytes <= kKeptScratch) {
    work(kept_scratch.at_least(bytes));
  } else {
    Scratch scratch;
    work(scratch.at_least(bytes));
  }
}

}  // namespace mmcontext
