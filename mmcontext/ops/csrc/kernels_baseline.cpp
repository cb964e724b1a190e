#include "kernels.h"

#define VECTOR_BYTES 16
#define WIDE_REGISTERS 0
#define WIDE_CHANNELS 8
#define KERNEL_SET kBaseline
#define KERNEL_NAME "baseline"
#include "kernels.inc"
