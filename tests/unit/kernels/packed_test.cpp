#include "qalora/kernels/packed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "qalora/kernels/reference.h"

namespace qalora::kernels {
namespace {

std::vector<uint8_t> random_codes(int64_t count, int bits, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (auto& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
  return codes;
}

TEST(Packed, KnownBytes) {
  // 4 bits: the first code is the low nibble. 0x76543210 in memory is 10 32 54 76.
  const uint8_t nibbles[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  uint32_t word = 0xFFFFFFFF;
  pack_row(nibbles, 8, 4, &word);
  EXPECT_EQ(word, 0x76543210u);
  // 3 bits straddle bytes: codes 1..7, 0 give 1 | 2 << 3 | 3 << 6 | ... = 0x1F58D1 (octal 07654321).
  const uint8_t three[8] = {1, 2, 3, 4, 5, 6, 7, 0};
  word = 0xFFFFFFFF;
  pack_row(three, 8, 3, &word);
  EXPECT_EQ(word, 07654321u) << "the rest of the last word must be zero";
  // 3 bits straddle words too: code 10 lies at bits 30..32.
  std::vector<uint8_t> codes(11, 0);
  codes[10] = 0b110;
  uint32_t words[2] = {0xFFFFFFFF, 0xFFFFFFFF};
  pack_row(codes.data(), 11, 3, words);
  EXPECT_EQ(words[0], 0x80000000u);
  EXPECT_EQ(words[1], 1u);
}

TEST(Packed, RoundTripOfEveryWidthAndLength) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int64_t length = 1; length <= 130; ++length) {
      const auto codes = random_codes(length, bits, static_cast<unsigned>(length));
      constexpr uint32_t kGuard = 0xDEADBEEF;
      std::vector<uint32_t> packed(static_cast<size_t>(words_per_row(length, bits)) + 1, kGuard);
      pack_row(codes.data(), length, bits, packed.data());
      ASSERT_EQ(packed.back(), kGuard) << "wrote behind the row, bits " << bits << " length " << length;
      std::vector<uint8_t> back(static_cast<size_t>(length) + 1, 0xAA);
      unpack_row(packed.data(), length, bits, back.data());
      ASSERT_EQ(back.back(), 0xAA);
      back.pop_back();
      ASSERT_EQ(back, codes) << "bits " << bits << " length " << length;
      // One bit of one code changed must show.
      auto other = codes;
      other[static_cast<size_t>(length / 2)] ^= 1;
      std::vector<uint32_t> different(packed.size(), kGuard);
      pack_row(other.data(), length, bits, different.data());
      ASSERT_NE(different, packed);
    }
  }
}

TEST(Packed, UnpackTakesAnyAddress) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    const auto codes = random_codes(37, bits, 5);
    std::vector<uint32_t> packed(static_cast<size_t>(words_per_row(37, bits)));
    pack_row(codes.data(), 37, bits, packed.data());
    for (size_t shift = 1; shift < 4; ++shift) {
      std::vector<unsigned char> moved(packed.size() * 4 + shift);
      std::copy_n(reinterpret_cast<const unsigned char*>(packed.data()), packed.size() * 4, moved.data() + shift);
      std::vector<uint8_t> back(37);
      unpack_row(reinterpret_cast<const uint32_t*>(moved.data() + shift), 37, bits, back.data());
      EXPECT_EQ(back, codes) << "bits " << bits << " shift " << shift;
    }
  }
}

}  // namespace
}  // namespace qalora::kernels
