#include "plans.h"

#include "instruction_sets.h"

namespace mmcontext {

void run(const Aggregation& call) {
  const std::vector<const Kernels*> sets = allowed_kernels();
  if (run_by_pixel(call, *sets[0])) return;
  // Where a channels-last tensor has too few channels for wide vectors, narrower ones are
  // several times as fast as turning its pixels into planes.
  const bool pixels = call.source.channel == 1;
  if (pixels && sets.size() > 1 && run_by_pixel(call, *sets[1])) return;
  run_planar(call, *sets[0]);
}

}  // namespace mmcontext
