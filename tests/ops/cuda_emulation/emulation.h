// The machine that the CUDA kernels see when g++ compiles them for a test: every thread of a
// block is a fiber, shared memory starts as NaN, asynchronous copies happen when they are waited
// for, and every address in global memory must lie in an operand. (machine.cpp)
#pragma once

#include <math.h>
#include <string.h>

#define DEVICE inline
#define __global__
#define __launch_bounds__(...)

namespace mmcontext {
template <int kBytes> struct Raw;
struct BFloat16;
}

namespace emulation {

struct Dim { unsigned x, y, z; };

extern Dim thread, block, block_size, grid;

// False, and the launch has failed, where the address is wrong.
bool in_operand(const void* address, int bytes, bool write);
bool in_shared(const void* address, int bytes);

void async_copy(void* to, const void* from, int bytes, bool valid);
void async_commit();
void async_wait(int pending);
void block_barrier();
// By all threads of a warp together: mma and ldmatrix of the machine, element by element.
void multiply_add(float* sums, const unsigned* a, const unsigned* b, bool is_bfloat16);
void load_turned(const char* from, unsigned* to, int matrices);
char* shared_memory();

inline float exponential(float value) { return expf(value); }
inline float inverse_root(float value) { return 1.f / sqrtf(value); }

float widen_half(unsigned short bits);
unsigned short narrow_half(float value);
unsigned short narrow_bfloat16(float value);

template <int kBytes> void async_copy(void* to, const void* from, bool valid) {
  async_copy(to, from, kBytes, valid);
}

template <class T> constexpr bool is_bfloat16 = false;
template <> constexpr bool is_bfloat16<mmcontext::BFloat16> = true;
template <class T>
void multiply_add(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add(sums, a, b, is_bfloat16<T>);
}
inline void load_four_turned(const char* from, unsigned (&to)[4]) { load_turned(from, to, 4); }
inline void load_two_turned(const char* from, unsigned (&to)[2]) { load_turned(from, to, 2); }

template <int kPending> void async_wait() { async_wait(kPending); }

template <int kBytes> mmcontext::Raw<kBytes> global_load(const void* from) {
  mmcontext::Raw<kBytes> value;
  memset(&value, 0xff, sizeof value);
  if (in_operand(from, kBytes, false)) memcpy(&value, from, kBytes);
  return value;
}

template <int kBytes> mmcontext::Raw<kBytes> global_reload(const void* from) {
  mmcontext::Raw<kBytes> value;
  memset(&value, 0xff, sizeof value);
  if (in_operand(from, kBytes, true)) memcpy(&value, from, kBytes);
  return value;
}

template <int kBytes> void global_store(void* to, const mmcontext::Raw<kBytes>& value) {
  if (in_operand(to, kBytes, true)) memcpy(to, &value, kBytes);
}

template <int kBytes> mmcontext::Raw<kBytes> shared_load(const void* from) {
  mmcontext::Raw<kBytes> value;
  memset(&value, 0xff, sizeof value);
  if (in_shared(from, kBytes)) memcpy(&value, from, kBytes);
  return value;
}

template <int kBytes> void shared_store(void* to, const mmcontext::Raw<kBytes>& value) {
  if (in_shared(to, kBytes)) memcpy(to, &value, kBytes);
}

}  // namespace emulation

#define threadIdx (emulation::thread)
#define blockIdx (emulation::block)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid)
