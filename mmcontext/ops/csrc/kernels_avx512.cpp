#include "kernels.h"

#ifdef MMCONTEXT_X86
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

#define VECTOR_BYTES 64
#define WIDE_REGISTERS 1
#define WIDE_CHANNELS 16
#define KERNEL_SET kAvx512
#define KERNEL_NAME "avx512"
#include "kernels.inc"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
