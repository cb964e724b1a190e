// Tiled kernels for square neighbourhoods of 3, 5 or 7, stride and dilation 1 or 2. Options:
//   TASK           0 forward, 1 gradient of x, 2 gradient of w
//   STORAGE        StorageOf
//   KERNEL, STRIDE, DILATION
//   CHANNELS       of a group in shared memory, 8 or 16
//   PART           channels of a thread (tasks 0 and 1)
//   STAGES         kernel rows of w in shared memory (tasks 0 and 1)
//   SOURCE_LAYOUT, OTHER_LAYOUT    of source and target (tasks 0, 1) or gradient of y: kPlanar,
//                  kLast, kMixed (tile.cuh); SOURCE_VECTOR, OTHER_VECTOR columns, or groups of a
//                  mixed map, are loaded or stored at a time
//   KERNELS_LAST   w has its taps next to each other; else KERNEL_VECTOR columns at a time
//   THREADS, BLOCKS            most threads per block, least blocks per multiprocessor
#if TASK == 2
#include "grad_weight.cuh"
#else
#include "convolve.cuh"
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    aggregate_tiled(const mmcontext::TiledParameters p) {
#if TASK == 2
  mmcontext::grad_weight(p);
#else
  mmcontext::convolve(p);
#endif
}
