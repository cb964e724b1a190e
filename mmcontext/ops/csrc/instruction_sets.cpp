#include "instruction_sets.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace mmcontext {

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> available;
#ifdef MMCONTEXT_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    available.push_back(&kAvx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    available.push_back(&kAvx2);
  }
#endif
  available.push_back(&kBaseline);
  return available;
}

std::vector<const Kernels*> allowed_kernels() {
  constexpr char kVariable[] = "MMCONTEXT_CPU_ISA";
  static const std::vector<const Kernels*> available = available_kernels();
  const char* wanted = std::getenv(kVariable);
  if (wanted == nullptr || *wanted == '\0') return available;
  std::string names;
  for (const Kernels* set : available) {
    if (std::strcmp(set->name, wanted) == 0) return {set};
    names += std::string(names.empty() ? "" : ", ") + set->name;
  }
  throw std::runtime_error(std::string(kVariable) + " is '" + wanted + "', expected one of " +
                           "those that this machine has: " + names);
}

}  // namespace mmcontext
