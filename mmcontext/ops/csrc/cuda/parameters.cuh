// What the planner on the host and the kernels agree on. Plain types only: NVRTC has no headers.
#pragma once

namespace mmcontext {

// A tensor as [batch, channel or group, tap, row, column]: address and strides in elements.
struct DeviceOperand {
  unsigned long long address;
  long long batch, channel, tap, row, col;
};

// The by-value parameter of the general kernels.
struct GeneralParameters {
  DeviceOperand source, kernel, target;
  long long count;                     // elements of the target
  int channels, groups, channels_last; // channels_last: the order in which threads take elements
  int in_rows, in_cols, out_rows, out_cols;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int interleaved;
};

}  // namespace mmcontext
