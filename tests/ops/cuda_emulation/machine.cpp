// The emulated machine: compiled once, used by all kernels.
#include "emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace emulation {

Dim thread, block, block_size, grid;

namespace {

// Memory that a launch may touch.
struct Range { uint64_t begin, end; bool writable; };

struct Copy { void* to; const void* from; int bytes; bool valid; };

enum class Wait { kNothing, kWarp, kBlock };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
  Wait wait = Wait::kNothing;
  unsigned exchanges = 0;                    // with the other threads of its warp
  unsigned given[2][6];                      // to the last two of them
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
};

Machine machine;

void fail(const std::string& what) {
  if (machine.error.empty()) {
    char where[160];
    std::snprintf(where, sizeof where, " (block %u %u %u, thread %u)", block.x, block.y, block.z,
                  thread.x);
    machine.error = what + where;
  }
}

}  // namespace

bool in_operand(const void* address, int bytes, bool write) {
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

bool in_shared(const void* address, int bytes) {
  const char* at = static_cast<const char*>(address);
  const char* begin = machine.shared.data();
  if (at >= begin && at + bytes <= begin + machine.shared.size() &&
      (at - begin) % bytes == 0) {
    return true;
  }
  fail("shared address outside or misaligned, " + std::to_string(bytes) + " bytes");
  return false;
}

void async_copy(void* to, const void* from, int bytes, bool valid) {
  if (!in_shared(to, bytes) || (valid && !in_operand(from, bytes, false))) return;
  std::memset(to, 0xff, bytes);
  machine.running->open.push_back({to, from, bytes, valid});
}

void async_commit() {
  Fiber& self = *machine.running;
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void async_wait(int pending) {
  auto& groups = machine.running->groups;
  for (; groups.size() > size_t(pending); groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
  }
}

char* shared_memory() { return machine.shared.data(); }

namespace {

void wait_for(Wait what) {
  Fiber& self = *machine.running;
  self.wait = what;
  swapcontext(&self.context, &machine.scheduler);
}

// Hands words to the warp; returns where those of its first thread are, when all have. They stay
// until the exchange after the next.
int exchange(const unsigned* words, int count) {
  Fiber& self = *machine.running;
  const int slot = self.exchanges++ % 2;
  std::memcpy(self.given[slot], words, count * sizeof(unsigned));
  wait_for(Wait::kWarp);
  return slot;
}

const unsigned* given_by(unsigned lane, int slot) {
  return machine.fibers[thread.x / 32 * 32 + lane].given[slot];
}

float widen_part(unsigned word, int part, bool is_bfloat16) {
  const unsigned bits = word >> 16 * part & 0xffffu;
  if (!is_bfloat16) return widen_half(static_cast<unsigned short>(bits));
  const uint32_t all = bits << 16;
  float value;
  std::memcpy(&value, &all, sizeof value);
  return value;
}

}  // namespace

void block_barrier() { wait_for(Wait::kBlock); }

// PTX, "Matrix Fragments for mma.m16n8k16 with floating point type": element (row, k) of a is in
// thread 4 (row % 8) + k / 2 % 4, register 2 (k / 8) + row / 8; (k, column) of b in thread
// 4 column + k / 2 % 4, register k / 8; (row, column) of the sums in thread
// 4 (row % 8) + column / 2, register 2 (row / 8) + column % 2.
void multiply_add(float* sums, const unsigned* a, const unsigned* b, bool is_bfloat16) {
  const unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const int slot = exchange(mine, 6);
  const unsigned lane = thread.x % 32;
  for (int i = 0; i < 4; ++i) {
    const unsigned column = 2 * (lane % 4) + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned* row = given_by(4 * (lane / 4) + k / 2 % 4, slot);
      const unsigned* other = given_by(4 * column + k / 2 % 4, slot);
      sums[i] += widen_part(row[2 * (k / 8) + i / 2], k % 2, is_bfloat16) *
                 widen_part(other[4 + k / 8], k % 2, is_bfloat16);
    }
  }
}

void load_turned(const char* from, unsigned* to, int matrices) {
  const unsigned lane = thread.x % 32;
  if (int(lane) < 8 * matrices && !in_shared(from, 16)) from = machine.shared.data();
  const uint64_t address = reinterpret_cast<uint64_t>(from);
  const unsigned mine[2] = {unsigned(address), unsigned(address >> 32)};
  const int slot = exchange(mine, 2);
  for (int i = 0; i < matrices; ++i) {
    to[i] = 0;
    for (int e = 0; e < 2; ++e) {
      const unsigned* words = given_by(8 * i + 2 * (lane % 4) + e, slot);
      const char* row = reinterpret_cast<const char*>(uint64_t(words[1]) << 32 | words[0]);
      unsigned short bits;
      std::memcpy(&bits, row + 2 * (lane / 4), sizeof bits);
      to[i] |= unsigned(bits) << 16 * e;
    }
  }
}

float widen_half(unsigned short bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

unsigned short narrow_half(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  unsigned short bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

unsigned short narrow_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>(bits >> 16 | 0x40u);
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

namespace {

void enter() {
  machine.body(machine.parameters);
  machine.running->done = true;
  swapcontext(&machine.running->context, &machine.scheduler);
}

// Runs a warp until all of its threads wait for the block, or are done.
void run_warp(unsigned first, unsigned count, bool forwards) {
  Machine& m = machine;
  for (unsigned together = count; together == count && m.error.empty();) {
    together = 0;
    for (unsigned i = 0; i < count; ++i) {
      thread.x = first + (forwards ? i : count - 1 - i);
      Fiber& fiber = m.fibers[thread.x];
      if (fiber.done) continue;
      m.running = &fiber;
      swapcontext(&m.scheduler, &fiber.context);
      together += !fiber.done && fiber.wait == Wait::kWarp;
    }
    if (together != 0 && together != count) fail("a warp's threads went different ways");
  }
}

// Threads run one after the other between barriers, forwards and backwards in turn, so that a
// missing barrier shows in one direction or the other.
void run_block(unsigned threads) {
  Machine& m = machine;
  std::fill(m.shared.begin(), m.shared.end(), char(0xff));
  if (m.fibers.size() != threads) m.fibers = std::vector<Fiber>(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.stack.resize(64 * 1024);
    fiber.done = false;
    fiber.exchanges = 0;
    fiber.open.clear();
    fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  bool forwards = (block.x + block.y + block.z) % 2 == 0;
  for (unsigned waiting = threads; waiting && m.error.empty(); forwards = !forwards) {
    const unsigned warps = (threads + 31) / 32;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned first = 32 * (forwards ? i : warps - 1 - i);
      run_warp(first, std::min(32u, threads - first), forwards);
    }
    waiting = 0;
    for (const Fiber& fiber : m.fibers) waiting += !fiber.done;
    if (waiting && waiting != threads) fail("some threads left while others wait at a barrier");
  }
  for (const Fiber& fiber : m.fibers) {
    if (!fiber.open.empty() || !fiber.groups.empty()) fail("copies were never waited for");
  }
}

}  // namespace
}  // namespace emulation

// Runs one launch; ranges are begin, end, writable for each operand. Null, or what went wrong.
extern "C" const char* run_launch(void (*body)(const void*), const unsigned* grid, unsigned threads,
                                  unsigned shared_bytes, const void* parameters,
                                  const unsigned long long* ranges, int count) {
  using namespace emulation;
  Machine& m = machine;
  m.ranges.clear();
  m.error.clear();
  for (int i = 0; i < count; ++i) {
    m.ranges.push_back({ranges[3 * i], ranges[3 * i + 1], ranges[3 * i + 2] != 0});
  }
  m.shared.assign(shared_bytes, 0);
  m.body = body;
  m.parameters = parameters;
  emulation::grid = {grid[0], grid[1], grid[2]};
  block_size = {threads, 1, 1};
  for (unsigned z = 0; z < grid[2] && m.error.empty(); ++z) {
    for (unsigned y = 0; y < grid[1] && m.error.empty(); ++y) {
      for (unsigned x = 0; x < grid[0] && m.error.empty(); ++x) {
        block = {x, y, z};
        run_block(threads);
      }
    }
  }
  return m.error.empty() ? nullptr : m.error.c_str();
}
