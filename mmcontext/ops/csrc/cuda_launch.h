// One launch of a CUDA kernel. Plain C++: no torch, no CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mmcontext {

struct CudaDevice {
  int capability;                                // 10 * major + minor
  int multiprocessors;
  int64_t shared_per_block, shared_per_multiprocessor;  // bytes; per block the opt-in maximum
};

struct CudaLaunch {
  std::string source;                            // file in the folder cuda/
  std::string defines;                           // with source, identifies a compiled kernel
  std::string entry;                             // name of the extern "C" __global__ function
  unsigned grid[3], block, shared_bytes;
  std::vector<char> parameters;                  // bytes of its one by-value parameter
};

template <class Parameters> std::vector<char> bytes_of(const Parameters& parameters) {
  const char* begin = reinterpret_cast<const char*>(&parameters);
  return {begin, begin + sizeof parameters};
}

}  // namespace mmcontext
