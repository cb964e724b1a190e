// Staging in shared memory: tiles of maps, including their halo.
#pragma once

#include "parameters.cuh"
#include "primitives.cuh"
#include "taps.cuh"

namespace mmcontext {

using T = StorageOf<STORAGE>::type;

constexpr int kUnit = 16 / sizeof(T);                 // channels in 16 bytes
constexpr int kUnits = CHANNELS / kUnit;              // of a group's pixel in shared memory

DEVICE int quotient(int number, const Divisor& divisor) {
  const unsigned twice = 2 * static_cast<unsigned>(number);
  return static_cast<int>(static_cast<unsigned long long>(twice) * divisor.factor >> 32);
}

// Whether 0 <= number < end.
DEVICE bool within(int number, int end) {
  return static_cast<unsigned>(number) < static_cast<unsigned>(end);
}

// Number modulo 4, also for negative numbers.
DEVICE int within_quad(int number) { return number & 3; }

// First unit of pixel `i` of a row. One unit of padding follows each kStep pixels, so that threads
// of neighbouring quads read different banks.
template <int kStep> DEVICE int unit_of(int i) { return i * kUnits + i / kStep; }

// The part of the problem that a block works on.
struct Block {
  int batch, group, chunk;             // first group; first channel of the group
  int row, quad;                       // first target row and quad
};

DEVICE Block this_block(const TiledParameters& p) {
  Block at;
  const int tile = blockIdx.x;
  at.row = tile / p.col_tiles * p.tile_rows;
  at.quad = tile % p.col_tiles * p.tile_quads;
  at.chunk = static_cast<int>(blockIdx.y) % p.chunks * CHANNELS;
  at.group = static_cast<int>(blockIdx.y) / p.chunks * p.tile_groups;
  at.batch = blockIdx.z;
  return at;
}

// Memory layout of a map: planar; channels-last with the channels of a group contiguous;
// channels-last with interleaved groups.
constexpr int kPlanar = 0, kLast = 1, kMixed = 2;

// The channels of a unit at kWidth pixels or groups, in registers between load and store.
template <int kWidth> struct Carried {
  T value[kUnit][kWidth];

  DEVICE Raw<16> unit_at(int place) const {
    Raw<16> raw;
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      memcpy(reinterpret_cast<char*>(&raw) + e * sizeof(T), &value[e][place], sizeof(T));
    }
    return raw;
  }
};

// Stage a planar map: every thread loads 4 columns of a unit's channels and stores 4 pixels, with
// kAhead such loads in flight.
template <int kStep, int kVector>
DEVICE void stage_planar(const TiledParameters& p, const DeviceOperand& map, const MapTile& tile,
                         int map_rows, int map_cols, int row0, int col0, const Block& at,
                         char* shared) {
  constexpr int kAhead = 2;
  const T* sample = reinterpret_cast<const T*>(map.address) + at.batch * map.batch;
  const int channel_step = p.channel_step * static_cast<int>(map.channel);
  const int offset = within_quad(col0), last = p.shared - at.chunk;
  const int count = tile.blocks.by * tile.rows * p.tile_groups * kUnits;
  for (int item = threadIdx.x; item < count; item += kAhead * blockDim.x) {
    Carried<4> carried[kAhead] = {};
    int to[kAhead], first_pixel[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int mine = item + i * blockDim.x;
      const int line = quotient(mine, tile.blocks), block = mine - line * tile.blocks.by;
      const int place = quotient(line, tile.lines), row = line - place * tile.rows;
      const int unit = place % kUnits, group = place / kUnits;
      const int map_row = row0 + row, map_col = col0 - offset + 4 * block;
      to[i] = 16 * (group * tile.group_pitch + row * tile.row_pitch + unit);
      first_pixel[i] = mine < count ? 4 * block - offset : tile.pixels;
      if (mine >= count || at.group + group >= p.groups || !within(map_row, map_rows)) continue;
      const T* from = sample +
          (((at.group + group) * p.group_step + at.chunk * p.channel_step) *
               static_cast<int>(map.channel) +
           unit * kUnit * channel_step + map_row * static_cast<int>(map.row) + map_col);
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
#pragma unroll
        for (int t = 0; t < 4; t += kVector) {
          if (unit * kUnit + e < last && within(map_col + t, map_cols)) {
            const auto raw = global_load<kVector * sizeof(T)>(from + e * channel_step + t);
            memcpy(&carried[i].value[e][t], &raw, sizeof raw);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const int pixel = first_pixel[i] + t;
        if (!within(pixel, tile.pixels)) continue;
        shared_store<16>(shared + to[i] + 16 * unit_of<kStep>(pixel), carried[i].unit_at(t));
      }
    }
  }
}

// Stage a channels-last map: units are copied unchanged and asynchronously.
template <int kStep>
DEVICE void stage_pixels(const TiledParameters& p, const DeviceOperand& map, const MapTile& tile,
                         int map_rows, int map_cols, int row0, int col0, const Block& at,
                         char* shared) {
  const T* sample = reinterpret_cast<const T*>(map.address) + at.batch * map.batch;
  const int count = p.units.by * tile.pixels * tile.rows;
  for (int item = threadIdx.x; item < count; item += blockDim.x) {
    const int line = quotient(item, p.units), place = item - line * p.units.by;
    const int row = quotient(line, tile.blocks), pixel = line - row * tile.blocks.by;
    const int unit = place % kUnits, group = place / kUnits;
    const int map_row = row0 + row, map_col = col0 + pixel, first = at.chunk + unit * kUnit;
    const bool inside = at.group + group < p.groups && first < p.shared &&
                        within(map_row, map_rows) && within(map_col, map_cols);
    const int element = (at.group + group) * p.group_step + first +
                        map_row * static_cast<int>(map.row) +
                        map_col * static_cast<int>(map.col);
    async_copy<16>(shared + 16 * (group * tile.group_pitch + row * tile.row_pitch + unit +
                                  unit_of<kStep>(pixel)),
                   sample + element, inside);
  }
}

// Stage a channels-last map with interleaved groups: every thread loads kVector groups of each of
// a unit's channels and stores a unit of as many groups.
template <int kStep, int kVector>
DEVICE void stage_mixed(const TiledParameters& p, const DeviceOperand& map, const MapTile& tile,
                        int map_rows, int map_cols, int row0, int col0, const Block& at,
                        char* shared) {
  const T* sample = reinterpret_cast<const T*>(map.address) + at.batch * map.batch;
  const int count = p.units.by / kVector * tile.pixels * tile.rows;
  for (int item = threadIdx.x; item < count; item += blockDim.x) {
    const int line = quotient(item * kVector, p.units), place = item - line * p.units.by / kVector;
    const int row = quotient(line, tile.blocks), pixel = line - row * tile.blocks.by;
    const int unit = place % kUnits, group = place / kUnits * kVector;
    const int map_row = row0 + row, map_col = col0 + pixel, first = at.chunk + unit * kUnit;
    Carried<kVector> carried = {};
    if (at.group + group < p.groups && within(map_row, map_rows) && within(map_col, map_cols)) {
      const T* from = sample + (at.group + group + first * p.channel_step +
                                map_row * static_cast<int>(map.row) +
                                map_col * static_cast<int>(map.col));
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        if (first + e >= p.shared) break;
        const auto raw = global_load<kVector * sizeof(T)>(from + e * p.channel_step);
        memcpy(carried.value[e], &raw, sizeof raw);
      }
    }
    char* to = shared + 16 * (group * tile.group_pitch + row * tile.row_pitch + unit +
                              unit_of<kStep>(pixel));
#pragma unroll
    for (int g = 0; g < kVector; ++g) {
      shared_store<16>(to + 16 * g * tile.group_pitch, carried.unit_at(g));
    }
  }
}

template <int kStep, int kLayout, int kVector>
DEVICE void stage_map(const TiledParameters& p, const DeviceOperand& map, const MapTile& tile,
                      int map_rows, int map_cols, int row0, int col0, const Block& at,
                      char* shared) {
  if constexpr (kLayout == kPlanar) {
    stage_planar<kStep, kVector>(p, map, tile, map_rows, map_cols, row0, col0, at, shared);
  } else if constexpr (kLayout == kLast) {
    stage_pixels<kStep>(p, map, tile, map_rows, map_cols, row0, col0, at, shared);
  } else {
    stage_mixed<kStep, kVector>(p, map, tile, map_rows, map_cols, row0, col0, at, shared);
  }
}

// Load kCount channels of a pixel, widened.
template <int kCount> DEVICE void load_channels(const char* from, float* to) {
#pragma unroll
  for (int i = 0; i < kCount; i += kUnit) {
    widen_all<T>(shared_load<16>(from + i * sizeof(T)), to + i);
  }
}

// Narrow kCount neighbouring elements and store them in pieces of kVector, but none from `limit`
// on.
template <int kCount, int kVector>
DEVICE void store_narrow(T* to, const float* from, int limit) {
#pragma unroll
  for (int i = 0; i < kCount; i += kVector) {
    Raw<kVector * sizeof(T)> raw;
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      T value;
      narrow(from[i + e], value);
      memcpy(reinterpret_cast<char*>(&raw) + e * sizeof(T), &value, sizeof(T));
    }
    if (i < limit) global_store<kVector * sizeof(T)>(to + i, raw);
  }
}

}  // namespace mmcontext
