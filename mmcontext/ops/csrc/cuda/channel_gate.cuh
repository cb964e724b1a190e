// The by-value parameter of the kernels in channel_gate.cu.
#pragma once

namespace mmcontext {

struct ChannelGateParameters {
  unsigned long long x, other, grad;       // maps [batch, pixels, channels]
  unsigned long long y, grad_x, grad_other;  // the last two are 0 if not needed
  unsigned long long factor, grad_factor;  // [batch, channels], or [batch, channels, 2] logits
  unsigned long long means, grad_means;    // [batch, channels]
  unsigned long long partial;              // float [blocks of pixels, batch, channels]
  long long pixels;                        // of an image
  int batch, channels, lanes;              // lanes: vectors of channels in a block
  int partials;                            // blocks of pixels whose sums are added
  float scale;                             // of the means
};

}  // namespace mmcontext
