// The sets of kernels, one per instruction set, that this machine can run.
#pragma once

#include <vector>

#include "kernels.h"

namespace mmcontext {

// All of them, the widest first.
std::vector<const Kernels*> available_kernels();

// The sets that a call may use, the widest first; only one if MMCONTEXT_CPU_ISA names it.
std::vector<const Kernels*> allowed_kernels();

}  // namespace mmcontext
