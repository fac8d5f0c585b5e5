// Lane order: how a tile of 16 rows x 128 inputs lies in memory, and what a lane of the warp that owns it gets.
//
// A tile has 4 blocks of 32 inputs. Lane l, with r = l / 4 and t = l % 4, owns in each block j the inputs 32 j + 8 t ..
// + 7 of rows r and r + 8. mma.m16n8k16 wants of lane l, in its A operand, the k pairs (2t, 2t + 1) and (2t + 8, 2t +
// 9) of those two rows. A sum does not mind the order of its terms, so we say that these k slots ARE the lane's inputs
// 0..3 in a first step and 4..7 in a second one. The B operand (the activations) then needs the same inputs of lane l,
// which are 16 neighbouring bytes: no shuffle on either side.
//
// Words of a tile (64 * bits u32). "Piece" = the 8 codes of one row and block; pair i of a piece = its codes 2 i and 2
// i + 1.
//   4 bits: [2 halves: row r, row r + 8][32 lanes][4 blocks]     code 2 i at bits 4 i, code 2 i + 1 at bits 16 + 4 i
//   2 bits: [32 lanes][4 blocks]     pair i of row r at bits 2 i and 16 + 2 i, of row r + 8 at bits 8 + 2 i and 24 + 2
//   i 3 bits: the two low bits of every code as for 2 bits, then the high bits: [32 lanes][2 pairs of blocks], pair
//           e = 0..7 of block j (e < 4: row r) at bits 2 e + j % 2 and 16 + 2 e + j % 2
// So a lane's share is one to two 16-byte loads, each 512 bytes in one piece for the warp, and a pair of codes comes
// out of a word with at most one shift and one mask, ready for packed 16-bit arithmetic.
#pragma once

#include "kernels/cuda/dialect.h"

namespace qalora::kernels::cuda {

constexpr int kBlockInputs = 32;
constexpr int kTileBlocks = kTileInputs / kBlockInputs;
constexpr int kQuadFloats = kTileRows * kQuad;  // scales of a (row tile, quad)

__host__ __device__ constexpr int words_per_tile(int bits) { return kTileRows * kTileInputs / 32 * bits; }

// A TiledShape with its divisions done, as kernels take it.
struct Layout {
  int out_features, in_features;
  int blocks_per_group;  // also the tiles that a quad covers: it is four groups, a tile four blocks
  int groups, quads, row_tiles, tiles;

  explicit Layout(const TiledShape& shape)
      : out_features(static_cast<int>(shape.out_features)),
        in_features(static_cast<int>(shape.in_features)),
        blocks_per_group(static_cast<int>(shape.group_size / kBlockInputs)),
        groups(static_cast<int>(shape.groups())),
        quads(static_cast<int>(shape.quads())),
        row_tiles(static_cast<int>(shape.row_tiles())),
        tiles(static_cast<int>(shape.input_tiles())) {}

  // Where a tile's words begin, and where a quad's floats do.
  __device__ __forceinline__ int64_t words_at(int row_tile, int tile, int bits) const {
    return (int64_t{row_tile} * tiles + tile) * words_per_tile(bits);
  }
  __device__ __forceinline__ int64_t floats_at(int row_tile, int quad) const {
    return (int64_t{row_tile} * quads + quad) * kQuadFloats;
  }
};

// What one lane holds of a tile.
template <int kBits>
struct LaneCodes;
template <>
struct LaneCodes<4> {
  uint4 low, high;  // rows r, r + 8; a word a block
};
template <>
struct LaneCodes<2> {
  uint4 both;
};
template <>
struct LaneCodes<3> {
  uint4 two;  // the codes' two low bits
  uint2 one;  // their high bit
};

// Codes are read once, so they are not worth a place in the cache ("streaming"). tile: words of one tile, 16-byte
// aligned.
__device__ __forceinline__ void load_codes(const uint32_t* tile, int lane, LaneCodes<4>& codes) {
  const uint4* from = reinterpret_cast<const uint4*>(tile);
  codes.low = __ldcs(from + lane);
  codes.high = __ldcs(from + kWarp + lane);
}
__device__ __forceinline__ void load_codes(const uint32_t* tile, int lane, LaneCodes<2>& codes) {
  codes.both = __ldcs(reinterpret_cast<const uint4*>(tile) + lane);
}
__device__ __forceinline__ void load_codes(const uint32_t* tile, int lane, LaneCodes<3>& codes) {
  codes.two = __ldcs(reinterpret_cast<const uint4*>(tile) + lane);
  codes.one = __ldcs(reinterpret_cast<const uint2*>(tile + 4 * kWarp) + lane);
}

// Moves the words so that block 0's places hold block `block` + 1, when they held `block`: for loops that are not
// unrolled.
__device__ __forceinline__ void next_word(uint4& words) { words.x = words.y, words.y = words.z, words.z = words.w; }
__device__ __forceinline__ void next_block(int, LaneCodes<4>& codes) { next_word(codes.low), next_word(codes.high); }
__device__ __forceinline__ void next_block(int, LaneCodes<2>& codes) { next_word(codes.both); }
__device__ __forceinline__ void next_block(int block, LaneCodes<3>& codes) {
  next_word(codes.two);
  codes.one.x = block % 2 == 0 ? codes.one.x >> 1 : codes.one.y;
}

// A lane's scales (or offsets) of a quad: x of row r, y of row r + 8, both of group 4 * quad + t.
__device__ __forceinline__ float2 load_quad(const float* quad, int lane) {
  return __ldg(reinterpret_cast<const float2*>(quad) + lane);
}

// Walks the blocks of a row and says to which of its quad's four groups a block belongs, without dividing at each.
struct GroupWalk {
  int blocks_per_group, in_group, slot;

  __device__ __forceinline__ GroupWalk(int blocks_per_group, int block)
      : blocks_per_group(blocks_per_group),
        in_group(block % blocks_per_group),
        slot(block / blocks_per_group % kQuad) {}
  __device__ __forceinline__ void next() {
    if (++in_group < blocks_per_group) return;
    in_group = 0;
    slot = (slot + 1) & (kQuad - 1);  // one instruction; % of an int takes four
  }
};

// Of the lane's own row r: the scale that the lane with t = slot holds.
__device__ __forceinline__ float of_slot(float value, int lane, int slot) {
  return __shfl_sync(kAllLanes, value, (lane & ~3) | slot);
}

// Walks tiles and says in which quad one lies.
struct QuadWalk {
  int tiles_per_quad, in_quad, quad;

  __device__ __forceinline__ QuadWalk(int tiles_per_quad, int tile)
      : tiles_per_quad(tiles_per_quad),
        in_quad(tile % tiles_per_quad),
        quad(tile / tiles_per_quad) {}
  __device__ __forceinline__ void next() {
    if (++in_quad < tiles_per_quad) return;
    in_quad = 0;
    ++quad;
  }
};

}  // namespace qalora::kernels::cuda
