// The by-value parameter of the kernels in batch_norm.cu. Plain types only: NVRTC has no headers.
#pragma once

namespace mmcontext {

struct BatchNormParameters {
  // Maps [pixels, channels] in the storage of the kernel; 0 if unused.
  unsigned long long x, residual, y;
  unsigned long long grad, grad_x, grad_residual;
  // float [channels]; weight and bias may be 0.
  unsigned long long weight, bias, running_mean, running_variance, grad_weight, grad_bias;
  // float [channels] or 0: counts in the running mean; its gradient is zero.
  unsigned long long offset, grad_offset;
  unsigned long long batches;          // one 64-bit integer that counts calls, or 0
  unsigned long long saved;            // float [4, channels]: mean, 1 / deviation, scale, shift
  unsigned long long partial;          // float [blocks of pixels, 2, channels]
  unsigned long long coefficients;     // float [3, channels]: of grad, of x - mean, constant
  long long pixels;
  int channels, lanes;                 // lanes: vectors of channels in a block
  int partials;                        // blocks of pixels whose sums are added
  float eps, momentum;
};

}  // namespace mmcontext
