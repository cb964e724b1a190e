// Storage types, vectors, asynchronous copies: everything in the kernels that is specific to the
// hardware. The host emulation (tests/ops/cuda_emulation) defines the same names and checks every
// address.
#pragma once

#ifdef MMCONTEXT_EMULATION
#include "emulation.h"
#else
#define DEVICE __device__ __forceinline__
#endif

namespace mmcontext {

#ifdef MMCONTEXT_EMULATION
using emulation::async_commit;
using emulation::async_copy;
using emulation::async_wait;
using emulation::block_barrier;
using emulation::exponential;
using emulation::global_load;
using emulation::global_reload;
using emulation::global_store;
using emulation::inverse_root;
using emulation::load_four_turned;
using emulation::load_two_turned;
using emulation::multiply_add;
using emulation::narrow_bfloat16;
using emulation::narrow_half;
using emulation::shared_load;
using emulation::shared_memory;
using emulation::shared_store;
using emulation::widen_half;
#endif

struct BFloat16 { unsigned short bits; };
struct Half { unsigned short bits; };

template <int kCode> struct StorageOf;
template <> struct StorageOf<0> { using type = float; using sum = float; };
template <> struct StorageOf<1> { using type = double; using sum = double; };
template <> struct StorageOf<2> { using type = BFloat16; using sum = float; };
template <> struct StorageOf<3> { using type = Half; using sum = float; };

template <class T> constexpr bool kIsBFloat16 = false;
template <> constexpr bool kIsBFloat16<BFloat16> = true;

// kBytes of raw memory, loaded or stored in one instruction.
template <int kBytes> struct Raw;
template <> struct Raw<2> { unsigned short word[1]; };
template <> struct alignas(4) Raw<4> { unsigned word[1]; };
template <> struct alignas(8) Raw<8> { unsigned word[2]; };
template <> struct alignas(16) Raw<16> { unsigned word[4]; };

template <class To, class From> DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

#ifndef MMCONTEXT_EMULATION

DEVICE void block_barrier() { __syncthreads(); }

DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// Load of data that is read-only for the whole kernel, hence through the non-coherent path.
template <int kBytes> DEVICE Raw<kBytes> global_load(const void* from) {
  Raw<kBytes> to;
  if constexpr (kBytes == 2) {
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(to.word[0]) : "l"(from));
  } else if constexpr (kBytes == 4) {
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(to.word[0]) : "l"(from));
  } else if constexpr (kBytes == 8) {
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(to.word[0]), "=r"(to.word[1]) : "l"(from));
  } else {
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3]) : "l"(from));
  }
  return to;
}

// Load of data that the same kernel writes.
template <int kBytes> DEVICE Raw<kBytes> global_reload(const void* from) {
  return *static_cast<const Raw<kBytes>*>(from);
}

template <int kBytes> DEVICE void global_store(void* to, const Raw<kBytes>& value) {
  *static_cast<Raw<kBytes>*>(to) = value;
}

template <int kBytes> DEVICE Raw<kBytes> shared_load(const void* from) {
  return *static_cast<const Raw<kBytes>*>(from);
}

template <int kBytes> DEVICE void shared_store(void* to, const Raw<kBytes>& value) {
  *static_cast<Raw<kBytes>*>(to) = value;
}

// Copy kBytes to shared memory asynchronously; if `valid` is false, write zeros and read nothing.
// Before compute capability 8.0 the copy is synchronous.
template <int kBytes> DEVICE void async_copy(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kBytes >= 4) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int bytes = valid ? kBytes : 0;
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                   :: "r"(place), "l"(from), "r"(bytes) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                   :: "r"(place), "l"(from), "n"(kBytes), "r"(bytes) : "memory");
    }
    return;
  }
#endif
  Raw<kBytes> value = {};
  if (valid) value = global_load<kBytes>(from);
  shared_store<kBytes>(to, value);
}

DEVICE void async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most kPending of this thread's latest groups of copies are still in flight.
template <int kPending> DEVICE void async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" :: "n"(kPending) : "memory");
#endif
}

DEVICE float widen_half(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

DEVICE unsigned short narrow_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

DEVICE unsigned short narrow_bfloat16(float value) {
#if __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const unsigned all = bit_cast<unsigned>(value);
  if ((all & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>(all >> 16 | 0x40u);
  return static_cast<unsigned short>((all + 0x7fffu + (all >> 16 & 1u)) >> 16);
#endif
}

// exp and 1 / sqrt, accurate to the last bits of float32.
DEVICE float exponential(float value) { return expf(value); }

DEVICE float inverse_root(float value) { return 1.f / sqrtf(value); }

// A warp's matrix product in half precision, sums += a b with a [16, 16] and b [16, 8]
// (mma.m16n8k16): each thread holds fragments of both operands and of the sums.
template <class T>
DEVICE void multiply_add(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kIsBFloat16<T>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// A warp loads 4 or 2 matrices of 8 x 8 elements of 2 bytes, transposed: lane i passes the address
// of row i % 8 of matrix i / 8 and receives, of every matrix, the elements (2 (i % 4), i / 4) and
// (2 (i % 4) + 1, i / 4).
DEVICE void load_four_turned(const char* from, unsigned (&to)[4]) {
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(from));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
}

DEVICE void load_two_turned(const char* from, unsigned (&to)[2]) {
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(from));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1]) : "r"(place) : "memory");
}

#endif  // MMCONTEXT_EMULATION

DEVICE float widen(float value) { return value; }
DEVICE double widen(double value) { return value; }
DEVICE float widen(BFloat16 value) {
  return bit_cast<float>(static_cast<unsigned>(value.bits) << 16);
}
DEVICE float widen(Half value) { return widen_half(value.bits); }

// Widen all elements of kBytes; a bfloat16 element takes one operation.
template <class T, int kBytes> DEVICE void widen_all(const Raw<kBytes>& raw, float* to) {
  constexpr int kWords = kBytes / 4;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if constexpr (sizeof(T) == 4) {
      to[i] = bit_cast<float>(raw.word[i]);
    } else if constexpr (kIsBFloat16<T>) {
      to[2 * i] = bit_cast<float>(raw.word[i] << 16);
      to[2 * i + 1] = bit_cast<float>(raw.word[i] & 0xffff0000u);
    } else {
      to[2 * i] = widen_half(static_cast<unsigned short>(raw.word[i]));
      to[2 * i + 1] = widen_half(static_cast<unsigned short>(raw.word[i] >> 16));
    }
  }
}

DEVICE void narrow(float value, float& to) { to = value; }
DEVICE void narrow(double value, double& to) { to = value; }
DEVICE void narrow(float value, BFloat16& to) { to.bits = narrow_bfloat16(value); }
DEVICE void narrow(float value, Half& to) { to.bits = narrow_half(value); }

template <class T> DEVICE T load_one(const T* from) {
  if constexpr (sizeof(T) == 8) {
    return bit_cast<T>(global_load<8>(from));
  } else {
    return bit_cast<T>(global_load<sizeof(T)>(from));
  }
}

}  // namespace mmcontext
