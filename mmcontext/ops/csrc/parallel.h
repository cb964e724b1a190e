// The threads that share the units of work: torch's or, where the kernels are built without torch,
// those of the host program.
#pragma once

#include <cstdint>

#ifndef MMCONTEXT_WITHOUT_TORCH
#include <ATen/Parallel.h>
#else
#include <functional>
#endif

namespace mmcontext {

// Calls work(begin, end) on ranges that cover all units.
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
