// From a lane's words to q - c (c = 2^(bits - 1)) in packed bf16 or fp16, exactly.
//
// 128 has a bf16 whose last 7 bits are the units: 0x4300 | q is 128 + q, and one packed subtraction of 128 + c leaves q
// - c without any rounding. A code that lies p bits higher counts 2^p: one packed fused multiply-add, (128 + 2^p q) *
// 2^-p - (128 * 2^-p + c), takes the place of the subtraction, exactly again, and saves the shift. fp16 has 10 such
// bits and starts from 1024 (0x6400).
//
// `magic` is handed down from the kernel's arguments although it is known when compiling: one LOP3 masks and sets bits
// when only one of its two constants is part of the instruction; with both known ptxas takes two.
#pragma once

#include <cstring>

#include "kernels/cuda/tile.h"

namespace qalora::kernels::cuda {

template <typename Element>
struct Numbers;
template <>
struct Numbers<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static constexpr int kMantissa = 7;
  static constexpr uint32_t kMagic = 0x43004300;
  static constexpr float kBase = 128;
  // Of numbers that the type has exactly.
  __host__ __device__ static constexpr uint32_t bits_of(float value) {
    return __builtin_bit_cast(uint32_t, value) >> 16;
  }
};
template <>
struct Numbers<__half> {
  using Pair = __half2;
  static constexpr int kMantissa = 10;
  static constexpr uint32_t kMagic = 0x64006400;
  static constexpr float kBase = 1024;
  __host__ __device__ static constexpr uint32_t bits_of(float value) {
    const uint32_t word = __builtin_bit_cast(uint32_t, value);
    return (word >> 16 & 0x8000) | (((word >> 23 & 0xFF) - 112) << 10) | (word >> 13 & 0x3FF);
  }
};

template <typename Pair>
__host__ __device__ __forceinline__ uint32_t word_of(Pair pair) {
  uint32_t word;
  memcpy(&word, static_cast<void*>(&pair), sizeof word);
  return word;
}
template <typename Pair>
__host__ __device__ __forceinline__ Pair pair_of(uint32_t word) {
  Pair pair;
  memcpy(static_cast<void*>(&pair), &word, sizeof word);
  return pair;
}

// Shifts right by kCount, left where it is negative.
template <int kCount>
__host__ __device__ __forceinline__ uint32_t shifted(uint32_t word) {
  if constexpr (kCount >= 0) return word >> kCount;
  else return word << -kCount;
}

// word holds codes at bits kPlace of both halves under kMagic: -> q - kCentre.
template <typename Element, int kPlace, int kCentre>
__host__ __device__ __forceinline__ uint32_t without_magic(uint32_t word) {
  using N = Numbers<Element>;
  constexpr float kUnit = 1.0f / (1 << kPlace);
  constexpr uint32_t kScale = N::bits_of(kUnit) * 0x10001;
  constexpr uint32_t kMinus = N::bits_of(-(N::kBase * kUnit + kCentre)) * 0x10001;
  using Pair = typename N::Pair;
  return word_of(__hfma2(pair_of<Pair>(word), pair_of<Pair>(kScale), pair_of<Pair>(kMinus)));
}

// Pair kPair of a word whose codes lie kStride bits apart; kWidth <= kStride bits are a code. kFields codes share one
// shift.
template <typename Element, int kStride, int kWidth>
constexpr int kFields = (Numbers<Element>::kMantissa - kWidth) / kStride + 1;

template <typename Element, int kBits, int kPair, int kCentre>
__host__ __device__ __forceinline__ uint32_t unpack_pair(uint32_t word, uint32_t magic) {
  constexpr int kShared = kFields<Element, kBits, kBits>;
  constexpr int kPlace = kPair % kShared * kBits;
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x10001u << kPlace;
  const uint32_t codes = word >> (kPair / kShared * kShared * kBits);
  return without_magic<Element, kPlace, kCentre>((codes & kMask) | magic);
}

// 3 bits: pair kPair = 0..7 of `two` (row r, then row r + 8) with its high bits from the word of its two blocks.
template <typename Element, int kPair, int kOdd, int kCentre>
__host__ __device__ __forceinline__ uint32_t unpack_three(uint32_t two, uint32_t one, uint32_t magic) {
  constexpr int kShared = kFields<Element, 2, 3>;
  constexpr int kPlace = kPair % kShared * 2;
  const uint32_t low = two >> (kPair / kShared * kShared * 2);
  const uint32_t high = shifted<kPair / kShared * kShared * 2 + kOdd - 2>(one);
  const uint32_t word = (low & (0x00030003u << kPlace)) | (high & (0x00040004u << kPlace)) | magic;
  return without_magic<Element, kPlace, kCentre>(word);
}

template <int kIndex>
__host__ __device__ __forceinline__ uint32_t component(const uint4& words) {
  if constexpr (kIndex == 0) return words.x;
  else if constexpr (kIndex == 1) return words.y;
  else if constexpr (kIndex == 2) return words.z;
  else return words.w;
}

// Both pieces of block kBlock: low[i], high[i] = pair i of row r, of row r + 8, as q - kCentre.
template <typename Element, int kCentre, int kBlock, int... kPairs>
__host__ __device__ __forceinline__ void unpack_block(const LaneCodes<4>& codes, uint32_t magic, uint32_t (&low)[4],
                                                      uint32_t (&high)[4], std::integer_sequence<int, kPairs...>) {
  ((low[kPairs] = unpack_pair<Element, 4, kPairs, kCentre>(component<kBlock>(codes.low), magic)), ...);
  ((high[kPairs] = unpack_pair<Element, 4, kPairs, kCentre>(component<kBlock>(codes.high), magic)), ...);
}
template <typename Element, int kCentre, int kBlock, int... kPairs>
__host__ __device__ __forceinline__ void unpack_block(const LaneCodes<2>& codes, uint32_t magic, uint32_t (&low)[4],
                                                      uint32_t (&high)[4], std::integer_sequence<int, kPairs...>) {
  const uint32_t word = component<kBlock>(codes.both);
  ((low[kPairs] = unpack_pair<Element, 2, kPairs, kCentre>(word, magic)), ...);
  ((high[kPairs] = unpack_pair<Element, 2, kPairs + 4, kCentre>(word, magic)), ...);
}
template <typename Element, int kCentre, int kBlock, int... kPairs>
__host__ __device__ __forceinline__ void unpack_block(const LaneCodes<3>& codes, uint32_t magic, uint32_t (&low)[4],
                                                      uint32_t (&high)[4], std::integer_sequence<int, kPairs...>) {
  const uint32_t two = component<kBlock>(codes.two), one = kBlock < 2 ? codes.one.x : codes.one.y;
  ((low[kPairs] = unpack_three<Element, kPairs, kBlock % 2, kCentre>(two, one, magic)), ...);
  ((high[kPairs] = unpack_three<Element, kPairs + 4, kBlock % 2, kCentre>(two, one, magic)), ...);
}

__host__ __device__ constexpr int centre_of(int bits) { return 1 << (bits - 1); }

// The A operands of block kBlock's two mma steps: q - c of rows r and r + 8.
template <typename Element, int kBits, int kBlock>
__host__ __device__ __forceinline__ void unpack_operands(const LaneCodes<kBits>& codes, uint32_t magic,
                                                         uint32_t (&first)[4], uint32_t (&second)[4]) {
  uint32_t low[4], high[4];
  unpack_block<Element, centre_of(kBits), kBlock>(codes, magic, low, high, std::make_integer_sequence<int, 4>());
  first[0] = low[0], first[1] = high[0], first[2] = low[1], first[3] = high[1];
  second[0] = low[2], second[1] = high[2], second[2] = low[3], second[3] = high[3];
}

// Calls body(std::integral_constant<int, 0>) .. <3>: a block's number chooses registers, so it must be known when
// compiling.
template <typename Body>
__host__ __device__ __forceinline__ void each_block(Body body) {
  body(std::integral_constant<int, 0>()), body(std::integral_constant<int, 1>());
  body(std::integral_constant<int, 2>()), body(std::integral_constant<int, 3>());
}

}  // namespace qalora::kernels::cuda
