#include "kernels.h"

#ifdef MMCONTEXT_X86
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define VECTOR_BYTES 32
#define WIDE_REGISTERS 0
#define WIDE_CHANNELS 16
#define KERNEL_SET kAvx2
#define KERNEL_NAME "avx2"
#include "kernels.inc"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
