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
  for (int bits : {2, 3, 4, 6, 8}) {
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
  for (int bits : {2, 3, 4, 6, 8}) {
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

struct PoolCase {
  int64_t in_features, group_size;
};

TEST(Pool, AgreesWithDoublePrecision) {
  for (const PoolCase& c :
       {PoolCase{64, 32}, {65, 32}, {100, 64}, {7, 32}, {33, 33}, {257, 128}, {96, 1}, {40, 5}, {4096, 256}}) {
    for (Pooling pooling : {Pooling::kSum, Pooling::kMean}) {
      constexpr int64_t kTokens = 3;
      std::mt19937 random(11);
      std::normal_distribution<float> normal;
      std::vector<float> x(static_cast<size_t>(kTokens * c.in_features));
      for (auto& value : x) value = normal(random);
      const std::vector<double> exact(x.begin(), x.end());
      const auto groups = groups_per_row(c.in_features, c.group_size);
      std::vector<float> out(static_cast<size_t>(kTokens * groups) + 1, 77);
      std::vector<double> expected(static_cast<size_t>(kTokens * groups));
      pool_rows(x.data(), kTokens, c.in_features, c.group_size, pooling, out.data());
      reference::pool(exact.data(), kTokens, c.in_features, c.group_size, pooling, expected.data());
      EXPECT_EQ(out.back(), 77) << "wrote behind the output";
      // A sum of n numbers below 6 in size errs by at most n rounding steps of half an ulp of the largest partial sum (6 n).
      const double n = static_cast<double>(c.group_size);
      const double tolerance = n * 6 * n * 0x1p-24 / (pooling == Pooling::kMean ? std::min<double>(n, 1) : 1);
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(out[i], expected[i], tolerance) << c.in_features << " by " << c.group_size << " at " << i;
      }
    }
  }
}

TEST(Pool, ExactOnWholeNumbersAndMeanUsesTheLastGroupsOwnLength) {
  std::vector<float> x(40);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  float out[2];
  pool_rows(x.data(), 1, 40, 32, Pooling::kSum, out);
  EXPECT_EQ(out[0], 496.0f);  // 0 + ... + 31
  EXPECT_EQ(out[1], 284.0f);  // 32 + ... + 39
  pool_rows(x.data(), 1, 40, 32, Pooling::kMean, out);
  EXPECT_EQ(out[0], 15.5f);
  EXPECT_EQ(out[1], 35.5f);  // by 8, not by 32
  x[39] += 1;
  pool_rows(x.data(), 1, 40, 32, Pooling::kSum, out);
  EXPECT_NE(out[1], 284.0f);
}

}  // namespace
}  // namespace qalora::kernels
