// The machine that the CUDA kernels see when g++ compiles them for a test: every thread of a
// block is a fiber, shared memory starts as NaN, asynchronous copies happen when they are waited
// for, and every address in global memory must lie in an operand.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#define DEVICE inline
#define __global__
#define __launch_bounds__(...)

namespace mmcontext {
template <int kBytes> struct Raw;
}

namespace emulation {

struct Dim { unsigned x = 1, y = 1, z = 1; };

// Memory that a launch may touch. Written elements are marked, so that holes are found.
struct Range { uint64_t begin, end; bool writable; };

struct Copy { void* to; const void* from; int bytes; bool valid; };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  Dim thread;
  bool done = false;
  std::vector<Copy> open;                    // copies since the last commit
  std::deque<std::vector<Copy>> groups;      // committed, oldest first
};

struct Machine {
  std::vector<Range> ranges;
  std::vector<char> shared;
  std::vector<Fiber> fibers;
  Fiber* running = nullptr;
  ucontext_t scheduler;
  void (*body)(const void*) = nullptr;
  const void* parameters = nullptr;
  std::string error;
  Dim block, grid, block_size;
};

inline Machine machine;

inline void fail(const std::string& what) {
  Machine& m = machine;
  if (m.error.empty()) {
    char where[160];
    std::snprintf(where, sizeof where, " (block %u %u %u, thread %u)", m.block.x, m.block.y,
                  m.block.z, m.running ? m.running->thread.x : 0);
    m.error = what + where;
  }
}

inline bool in_operand(const void* address, int bytes, bool write) {
  const uint64_t at = reinterpret_cast<uint64_t>(address);
  if (at % bytes) {
    fail("misaligned access of " + std::to_string(bytes) + " bytes");
    return false;
  }
  for (const Range& range : machine.ranges) {
    if (at >= range.begin && at + bytes <= range.end && range.writable == write) return true;
  }
  fail(std::string(write ? "store" : "load") + " outside of the operands, " +
       std::to_string(bytes) + " bytes");
  return false;
}

inline bool in_shared(const void* address, int bytes) {
  const char* at = static_cast<const char*>(address);
  const char* begin = machine.shared.data();
  if (at >= begin && at + bytes <= begin + machine.shared.size() &&
      (at - begin) % bytes == 0) {
    return true;
  }
  fail("shared address outside or misaligned, " + std::to_string(bytes) + " bytes");
  return false;
}

template <int kBytes> mmcontext::Raw<kBytes> global_load(const void* from) {
  mmcontext::Raw<kBytes> value;
  std::memset(&value, 0xff, sizeof value);
  if (in_operand(from, kBytes, false)) std::memcpy(&value, from, kBytes);
  return value;
}

template <int kBytes> void global_store(void* to, const mmcontext::Raw<kBytes>& value) {
  if (in_operand(to, kBytes, true)) std::memcpy(to, &value, kBytes);
}

template <int kBytes> void async_copy(void* to, const void* from, bool valid) {
  if (!in_shared(to, kBytes) || (valid && !in_operand(from, kBytes, false))) return;
  std::memset(to, 0xff, kBytes);
  machine.running->open.push_back({to, from, kBytes, valid});
}

inline void async_commit() {
  Fiber& self = *machine.running;
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

template <int kPending> void async_wait() {
  auto& groups = machine.running->groups;
  for (; groups.size() > size_t(kPending); groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
  }
}

template <int kBytes> mmcontext::Raw<kBytes> shared_load(const void* from) {
  mmcontext::Raw<kBytes> value;
  std::memset(&value, 0xff, sizeof value);
  if (in_shared(from, kBytes)) std::memcpy(&value, from, kBytes);
  return value;
}

template <int kBytes> void shared_store(void* to, const mmcontext::Raw<kBytes>& value) {
  if (in_shared(to, kBytes)) std::memcpy(to, &value, kBytes);
}

inline char* shared_memory() { return machine.shared.data(); }

inline void block_barrier() {
  Fiber& self = *machine.running;
  swapcontext(&self.context, &machine.scheduler);
}

inline float widen_half(unsigned short bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned short narrow_half(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  unsigned short bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

inline unsigned short narrow_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>(bits >> 16 | 0x40u);
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void enter() {
  machine.body(machine.parameters);
  machine.running->done = true;
  swapcontext(&machine.running->context, &machine.scheduler);
}

// Threads run one after the other between barriers, forwards and backwards in turn, so that a
// missing barrier shows in one direction or the other.
inline void run_block(unsigned threads) {
  Machine& m = machine;
  std::fill(m.shared.begin(), m.shared.end(), char(0xff));
  if (m.fibers.size() != threads) m.fibers = std::vector<Fiber>(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.stack.resize(64 * 1024);
    fiber.thread = {i, 0, 0};
    fiber.done = false;
    fiber.open.clear();
    fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  bool forwards = (m.block.x + m.block.y + m.block.z) % 2 == 0;
  for (unsigned waiting = threads; waiting && m.error.empty(); forwards = !forwards) {
    waiting = 0;
    unsigned finished = 0;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = m.fibers[forwards ? i : threads - 1 - i];
      if (fiber.done) continue;
      m.running = &fiber;
      swapcontext(&m.scheduler, &fiber.context);
      (fiber.done ? finished : waiting) += 1;
    }
    if (waiting && finished) fail("some threads left while others wait at a barrier");
  }
  for (const Fiber& fiber : m.fibers) {
    if (!fiber.open.empty() || !fiber.groups.empty()) fail("copies were never waited for");
  }
}

}  // namespace emulation

#define threadIdx (emulation::machine.running->thread)
#define blockIdx (emulation::machine.block)
#define blockDim (emulation::machine.block_size)
#define gridDim (emulation::machine.grid)
