// Staging: a map's tile with its neighbourhood, and one kernel row of w after the other.
#pragma once

#include "parameters.cuh"
#include "primitives.cuh"
#include "taps.cuh"

namespace mmcontext {

using T = StorageOf<STORAGE>::type;

constexpr int kUnit = 16 / sizeof(T);                 // channels in 16 bytes
constexpr int kUnits = CHANNELS / kUnit;              // of a group's pixel in shared memory

DEVICE int quotient(int number, const Divisor& divisor) {
  return divisor.factor
      ? static_cast<int>(static_cast<unsigned long long>(number) * divisor.factor >> 32) : number;
}

// Number modulo 4, of negative numbers too.
DEVICE int within_quad(int number) { return number & 3; }

// Unit of pixel `i` of a row; one unit is left out after each kStep pixels, so that threads of
// neighbouring quads read different banks.
template <int kStep> DEVICE int unit_of(int i) { return i * kUnits + i / kStep; }

// What a block works on.
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

// Stage a planar map: every thread loads 4 columns of a unit's channels and stores 4 pixels.
template <int kStep, int kVector>
DEVICE void stage_planar(const TiledParameters& p, const DeviceOperand& map, const MapTile& tile,
                         int map_rows, int map_cols, int row0, int col0, const Block& at,
                         char* shared) {
  const T* sample = reinterpret_cast<const T*>(map.address) + at.batch * map.batch;
  const int offset = within_quad(col0);
  const int count = tile.blocks.by * tile.rows * p.tile_groups * kUnits;
  for (int item = threadIdx.x; item < count; item += blockDim.x) {
    const int line = quotient(item, tile.blocks), block = item - line * tile.blocks.by;
    const int place = quotient(line, tile.lines), row = line - place * tile.rows;
    const int unit = place % kUnits, group = place / kUnits;
    const int map_row = row0 + row, map_col = col0 - offset + 4 * block;
    const int first = at.chunk + unit * kUnit;
    const bool inside = at.group + group < p.groups && map_row >= 0 && map_row < map_rows;
    int element = (at.group + group) * p.group_step + first * p.channel_step;
    element = element * static_cast<int>(map.channel) + map_row * static_cast<int>(map.row) +
              map_col;
    const int step = p.channel_step * static_cast<int>(map.channel);
    T value[kUnit][4];
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
#pragma unroll
      for (int t = 0; t < 4; t += kVector) {
        Raw<kVector * sizeof(T)> raw = {};
        if (inside && first + e < p.shared && map_col + t >= 0 && map_col + t < map_cols) {
          raw = global_load<kVector * sizeof(T)>(sample + element + e * step + t);
        }
        memcpy(&value[e][t], &raw, sizeof raw);
      }
    }
    char* to = shared + 16 * (group * tile.group_pitch + row * tile.row_pitch + unit);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int pixel = 4 * block - offset + t;
      if (pixel < 0 || pixel >= tile.pixels) continue;
      Raw<16> raw;
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        memcpy(reinterpret_cast<char*>(&raw) + e * sizeof(T), &value[e][t], sizeof(T));
      }
      shared_store<16>(to + 16 * unit_of<kStep>(pixel), raw);
    }
  }
}

// Stage a channels-last map: units are copied as they lie, without waiting.
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
    const bool inside = at.group + group < p.groups && first < p.shared && map_row >= 0 &&
                        map_row < map_rows && map_col >= 0 && map_col < map_cols;
    const int element = (at.group + group) * p.group_step + first +
                        map_row * static_cast<int>(map.row) +
                        map_col * static_cast<int>(map.col);
    async_copy<16>(shared + 16 * (group * tile.group_pitch + row * tile.row_pitch + unit +
                                  unit_of<kStep>(pixel)),
                   sample + (inside ? element : 0), inside);
  }
}

template <int kStep, bool kLast, int kVector>
DEVICE void stage_map(const TiledParameters& p, const DeviceOperand& map, const MapTile& tile,
                      int map_rows, int map_cols, int row0, int col0, const Block& at,
                      char* shared) {
  if constexpr (kLast) {
    stage_pixels<kStep>(p, map, tile, map_rows, map_cols, row0, col0, at, shared);
  } else {
    stage_planar<kStep, kVector>(p, map, tile, map_rows, map_cols, row0, col0, at, shared);
  }
}

// kCount channels of a pixel, widened.
template <int kCount> DEVICE void load_channels(const char* from, float* to) {
#pragma unroll
  for (int i = 0; i < kCount; i += kUnit) {
    const Raw<16> raw = shared_load<16>(from + i * sizeof(T));
#pragma unroll
    for (int e = 0; e < kUnit; ++e) {
      T value;
      memcpy(&value, reinterpret_cast<const char*>(&raw) + e * sizeof(T), sizeof(T));
      to[i + e] = widen(value);
    }
  }
}

// kCount neighbouring elements, narrowed and stored in pieces of kVector; those from `limit` on
// are left out.
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
