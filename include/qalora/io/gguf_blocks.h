// Blocks of 32 weights as GGUF has them, to and from the canonical form: w = scale * code + offset, one little-endian
// bit stream of codes a row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qalora/io/gguf_file.h"

namespace qalora::io {

inline constexpr int64_t kGgufBlock = 32;  // weights of a block, in every type here

// 4, 5 or 8; 0 for a dense type.
int gguf_code_bits(GgufType type);

// A row of so many blocks.
// -> packed: [words_per_row(32 * blocks, bits)] u32; bits >= gguf_code_bits(type)
void gguf_row_codes(GgufType type, const std::byte* row, int64_t blocks, int bits, uint32_t* packed);
void gguf_row_scales(GgufType type, const std::byte* row, int64_t blocks, float* scales);    // [blocks]
void gguf_row_offsets(GgufType type, const std::byte* row, int64_t blocks, float* offsets);  // [blocks]
// scale * code + offset. values: [32 * blocks] f32
void gguf_row_values(GgufType type, const std::byte* row, int64_t blocks, float* values);

// One row of Q4_1 blocks. packed: codes of 2, 3 or 4 bits as a bit stream; scales, offsets: [groups] as f16 bits, each
// for group_size (a multiple of 32) weights, the last for the rest of the row.
void gguf_pack_q4_1(const uint32_t* packed, int bits, const uint16_t* scales, const uint16_t* offsets,
                    int64_t group_size, int64_t blocks, std::byte* row);
// One row of Q8_0 blocks: scale = largest |value| / 127, codes rounded to nearest. values: [32 * blocks] f32, finite.
// False where a scale overflows f16.
bool gguf_pack_q8_0(const float* values, int64_t blocks, std::byte* row);

}  // namespace qalora::io
