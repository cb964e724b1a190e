// The by-value parameter of the kernels in group_norm.cu.
#pragma once

namespace mmcontext {

struct GroupNormParameters {
  // Contiguous maps [batch, channels, pixels].
  unsigned long long x, y, grad, grad_x;
  // float [channels]; weight and bias may be 0.
  unsigned long long weight, bias, grad_weight, grad_bias;
  unsigned long long saved;                // float [2, batch * groups]: mean, 1 / deviation
  unsigned long long sums;                 // float [2, batch, channels]: of grad, of grad * normed
  int batch, groups, channels, pixels;
  int lanes;                               // channels that a block adds up side by side
  float eps;
};

}  // namespace mmcontext
