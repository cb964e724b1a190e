// The threads that units of work are divided among: torch's, or those of the program that the kernels
// are linked into without torch.
#pragma once

#include <cstdint>

#ifndef MMCONTEXT_WITHOUT_TORCH
#include <ATen/Parallel.h>
#else
#include <functional>
#endif

namespace mmcontext {

// Calls work(begin, end) until all units are done.
#ifndef MMCONTEXT_WITHOUT_TORCH
template <class Work> void parallel_for(int64_t units, const Work& work) {
  at::parallel_for(0, units, 1, work);
}

inline int64_t thread_count() { return at::get_num_threads(); }
#else
void parallel_for(int64_t units, const std::function<void(int64_t, int64_t)>& work);

int64_t thread_count();
#endif

}  // namespace mmcontext
