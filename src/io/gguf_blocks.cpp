#include "qalora/io/gguf_blocks.h"

#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "qalora/core/error.h"
#include "qalora/kernels/packed.h"

namespace qalora::io {
namespace {

static_assert(std::endian::native == std::endian::little, "blocks are read as they lie");

// Where the parts of a block lie, in bytes from its start, and what a code of zero is worth in steps where there is no
// minimum.
struct BlockParts {
  size_t bytes, minimum, high_bits, codes;  // minimum, high_bits: 0 where there are none
  float zero_point;
};

BlockParts parts_of(GgufType type) {
  switch (type) {
    case GgufType::kQ4_0: return {18, 0, 0, 2, 8};
    case GgufType::kQ4_1: return {20, 2, 0, 4, 0};
    case GgufType::kQ5_0: return {22, 0, 2, 6, 16};
    case GgufType::kQ5_1: return {24, 2, 4, 8, 0};
    case GgufType::kQ8_0: return {34, 0, 0, 2, 128};
    default: throw InternalError("internal error: a dense type has no blocks");
  }
}

float half_at(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

// The low nibbles of eight bytes, in order, as 32 bits: the format keeps elements 0..15 in the low halves and 16..31 in
// the high ones.
uint32_t gather_nibbles(uint64_t x) {
  x &= 0x0f0f0f0f0f0f0f0full;
  x = (x | x >> 4) & 0x00ff00ff00ff00ffull;
  x = (x | x >> 8) & 0x0000ffff0000ffffull;
  return static_cast<uint32_t>(x | x >> 16);
}

uint64_t spread_nibbles(uint32_t bits) {
  uint64_t x = bits;
  x = (x | x << 16) & 0x0000ffff0000ffffull;
  x = (x | x << 8) & 0x00ff00ff00ff00ffull;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0full;
}

// The nearest whole number as a signed byte, |x| <= 128: added to 1.5 * 2^23 it stands in the last bits. A loop of
// these is vectorised.
uint8_t nearest(float x) { return static_cast<uint8_t>(std::bit_cast<uint32_t>(x + 12582912.0f)); }

// codes: [32] u8
void block_codes(GgufType type, const BlockParts& parts, const std::byte* block, uint8_t* codes) {
  const std::byte* stored = block + parts.codes;
  if (type == GgufType::kQ8_0) {  // signed bytes, moved up by 128
    for (int i = 0; i < kGgufBlock; ++i) codes[i] = static_cast<uint8_t>(stored[i] ^ std::byte{0x80});
    return;
  }
  if (parts.high_bits == 0) {
    for (int i = 0; i < 16; ++i) {
      codes[i] = static_cast<uint8_t>(stored[i] & std::byte{0xf});
      codes[i + 16] = static_cast<uint8_t>(stored[i] >> 4);
    }
    return;
  }
  uint32_t high = 0;
  std::memcpy(&high, block + parts.high_bits, sizeof high);
  for (int i = 0; i < 16; ++i) {
    const auto both = static_cast<uint8_t>(stored[i]);
    codes[i] = static_cast<uint8_t>((both & 0xf) | (high >> i & 1) << 4);
    codes[i + 16] = static_cast<uint8_t>(both >> 4 | (high >> (i + 16) & 1) << 4);
  }
}

void row_nibbles(const BlockParts& parts, const std::byte* row, int64_t blocks, uint32_t* packed) {
  for (int64_t b = 0; b < blocks; ++b, row += parts.bytes, packed += 4) {
    uint64_t first, second;
    std::memcpy(&first, row + parts.codes, 8);
    std::memcpy(&second, row + parts.codes + 8, 8);
    const uint32_t words[4] = {gather_nibbles(first), gather_nibbles(second), gather_nibbles(first >> 4),
                               gather_nibbles(second >> 4)};
    std::memcpy(packed, words, sizeof words);
  }
}

}  // namespace

int gguf_code_bits(GgufType type) {
  switch (type) {
    case GgufType::kQ4_0:
    case GgufType::kQ4_1: return 4;
    case GgufType::kQ5_0:
    case GgufType::kQ5_1: return 5;
    case GgufType::kQ8_0: return 8;
    default: return 0;
  }
}

void gguf_row_codes(GgufType type, const std::byte* row, int64_t blocks, int bits, uint32_t* packed) {
  const BlockParts parts = parts_of(type);
  if (bits == 4) return row_nibbles(parts, row, blocks, packed);
  const int64_t words = bits;  // of 32 codes
  std::array<uint8_t, kGgufBlock> codes;
  for (int64_t b = 0; b < blocks; ++b, row += parts.bytes, packed += words) {
    block_codes(type, parts, row, codes.data());
    if (bits == 8) {
      std::memcpy(packed, codes.data(), codes.size());
    } else {
      kernels::pack_row(codes.data(), kGgufBlock, bits, packed);
    }
  }
}

void gguf_row_scales(GgufType type, const std::byte* row, int64_t blocks, float* scales) {
  const BlockParts parts = parts_of(type);
  for (int64_t b = 0; b < blocks; ++b, row += parts.bytes) scales[b] = half_at(row);
}

void gguf_row_offsets(GgufType type, const std::byte* row, int64_t blocks, float* offsets) {
  const BlockParts parts = parts_of(type);
  for (int64_t b = 0; b < blocks; ++b, row += parts.bytes) {
    offsets[b] =
        parts.minimum != 0 ? half_at(row + parts.minimum) : -parts.zero_point * half_at(row);  // exact: a power of two
  }
}

void gguf_row_values(GgufType type, const std::byte* row, int64_t blocks, float* values) {
  const BlockParts parts = parts_of(type);
  std::array<uint8_t, kGgufBlock> codes;
  for (int64_t b = 0; b < blocks; ++b, row += parts.bytes, values += kGgufBlock) {
    block_codes(type, parts, row, codes.data());
    const float scale = half_at(row),
                offset = parts.minimum != 0 ? half_at(row + parts.minimum) : -parts.zero_point * scale;
    for (int i = 0; i < kGgufBlock; ++i) values[i] = scale * static_cast<float>(codes[i]) + offset;
  }
}

void gguf_pack_q4_1(const uint32_t* packed, int bits, const uint16_t* scales, const uint16_t* offsets,
                    int64_t group_size, int64_t blocks, std::byte* row) {
  const int64_t blocks_of_group = group_size / kGgufBlock;
  std::array<uint8_t, kGgufBlock> codes;
  for (int64_t b = 0; b < blocks; ++b, row += 20) {
    const int64_t group = b / blocks_of_group;
    std::memcpy(row, scales + group, 2);
    std::memcpy(row + 2, offsets + group, 2);
    uint64_t first, second;
    if (bits == 4) {
      uint32_t words[4];
      std::memcpy(words, packed + 4 * b, sizeof words);
      first = spread_nibbles(words[0]) | spread_nibbles(words[2]) << 4;
      second = spread_nibbles(words[1]) | spread_nibbles(words[3]) << 4;
    } else {
      kernels::unpack_row(packed + bits * b, kGgufBlock, bits, codes.data());
      uint64_t quarters[4];
      std::memcpy(quarters, codes.data(), sizeof quarters);
      first = quarters[0] | quarters[2] << 4;
      second = quarters[1] | quarters[3] << 4;
    }
    std::memcpy(row + 4, &first, 8);
    std::memcpy(row + 12, &second, 8);
  }
}

bool gguf_pack_q8_0(const float* values, int64_t blocks, std::byte* row) {
  bool fits = true;
  for (int64_t b = 0; b < blocks; ++b, row += 34, values += kGgufBlock) {
    float largest = 0;
    for (int i = 0; i < kGgufBlock; ++i) largest = std::max(largest, std::abs(values[i]));
    const float scale = largest / 127, inverse = 1 / scale > std::numeric_limits<float>::max() ? 0 : 1 / scale;
    const c10::Half stored(scale);
    fits = fits && std::isfinite(static_cast<float>(stored));
    std::memcpy(row, &stored.x, 2);
    for (int i = 0; i < kGgufBlock; ++i) row[2 + i] = static_cast<std::byte>(nearest(values[i] * inverse));
  }
  return fits;
}

}  // namespace qalora::io
