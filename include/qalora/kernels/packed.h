// The packed layout: w = scale * code + offset, one scale and one offset per (row, group).
//
// A row of codes is one little-endian bit stream: code k lies at bits [k * bits, (k + 1) * bits) of the row's bytes.
// This is MLX's affine layout for every bit width. Rows start at 32-bit words; the last word is filled with zero bits.
// Groups run along in_features; when group_size does not divide in_features the last group is shorter and has a scale
// and an offset of its own.
//
// Nothing here knows LibTorch, throws or prints: raw pointers, sizes, a Status.
#pragma once

#include <cstdint>

namespace qalora::kernels {

enum class [[nodiscard]] Status{kOk, kUnsupported, kBadArgument, kDeviceError};

constexpr int64_t words_per_row(int64_t in_features, int bits) { return (in_features * bits + 31) / 32; }
constexpr int64_t groups_per_row(int64_t in_features, int64_t group_size) {
  return (in_features + group_size - 1) / group_size;
}

// A quantised matrix that somebody else owns.
struct PackedView {
  const uint32_t* codes = nullptr;  // [out_features, words_per_row(in_features, bits)]
  const float* scales = nullptr;    // [out_features, groups]
  const float* offsets = nullptr;   // [out_features, groups]
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;
  int bits = 0;  // 2, 3, 4; readers also take 5, 6 and 8

  int64_t words() const { return words_per_row(in_features, bits); }
  int64_t groups() const { return groups_per_row(in_features, group_size); }
};

// One row. codes: [in_features] u8, each < 2^bits. packed: [words_per_row] u32, overwritten.
void pack_row(const uint8_t* codes, int64_t in_features, int bits, uint32_t* packed);
void unpack_row(const uint32_t* packed, int64_t in_features, int bits, uint8_t* codes);

// Rows [row_begin, row_end) of the dense weight, w = scale * code + offset in fp32 (one product, one sum, no fused
// multiply-add: every instruction set gives the same bits).
// out: [row_end - row_begin, in_features] f32, or bf16 rounded to nearest even from the fp32 value.
// Chooses the fastest implementation this processor runs; may be called from several threads on disjoint rows.
Status dequantize_rows(const PackedView& view, int64_t row_begin, int64_t row_end, float* out);
Status dequantize_rows_bf16(const PackedView& view, int64_t row_begin, int64_t row_end, uint16_t* out);

// y = x . W^T for a few tokens (decoding), without ever writing W to memory: the same fp32 weights as above, one
// running sum per lane, so equal to dequantising and multiplying up to the order of the sum. Only columns [row_begin,
// row_end) of y are written: threads take disjoint rows. Worth it up to about four tokens; above, dequantising once for
// all of them is cheaper. x: [tokens, in_features] f32 -> y: [tokens, out_features] f32
Status matvec_rows(const PackedView& view, const float* x, int64_t tokens, int64_t row_begin, int64_t row_end,
                   float* y);

// Which instruction set dequantize_rows uses: "scalar", "avx2", "avx512". QALORA_FORCE_ISA chooses one; an unknown or
// missing one makes force_isa_error() return a sentence.
const char* active_isa();
const char* force_isa_error();  // nullptr when fine

}  // namespace qalora::kernels
