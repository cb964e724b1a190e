#include "instruction_sets.h"

#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace mmcontext {
namespace {

constexpr char kIsaVariable[] = "MMCONTEXT_CPU_ISA";

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

std::string instruction_set() { return allowed_kernels().front()->name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* set : available_kernels()) names.push_back(set->name);
  return names;
}

}  // namespace

std::vector<const Kernels*> allowed_kernels() {
  static const std::vector<const Kernels*> available = available_kernels();
  const char* wanted = std::getenv(kIsaVariable);
  if (wanted == nullptr || *wanted == '\0') return available;
  std::string names;
  for (const Kernels* set : available) {
    if (std::strcmp(set->name, wanted) == 0) return {set};
    names += std::string(names.empty() ? "" : ", ") + set->name;
  }
  TORCH_CHECK(false, kIsaVariable, " is '", wanted, "', expected one of those that this machine ",
              "has: ", names);
}

}  // namespace mmcontext

TORCH_LIBRARY_FRAGMENT(mmcontext_native, m) {
  m.def("instruction_set() -> str", &mmcontext::instruction_set);
  m.def("instruction_sets() -> str[]", &mmcontext::instruction_sets);
}
