#include "qalora/tensor/random.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "qalora/core/error.h"

namespace qalora::tensor {
namespace {

using Words = std::array<uint32_t, 4>;

Words philox(Words counter, std::array<uint32_t, 2> key) {
  Words out;
  philox4x32_10(counter.data(), key.data(), out.data());
  return out;
}

// The known answers that Random123 publishes with the generator.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  EXPECT_NE(philox({1, 0, 0, 0}, {0, 0}), philox({0, 0, 0, 0}, {0, 0}));
}

std::vector<uint32_t> first_words(RandomStream stream) {
  std::vector<uint32_t> words(16);
  for (auto& word : words) word = stream.next_u32();
  return words;
}

TEST(RandomStream, IsAFunctionOfSeedPurposeAndIndex) {
  const auto words = first_words({7, "shuffle", 3});
  EXPECT_EQ(first_words({7, "shuffle", 3}), words);
  EXPECT_NE(first_words({8, "shuffle", 3}), words);
  EXPECT_NE(first_words({7 + (uint64_t{1} << 32), "shuffle", 3}), words);
  EXPECT_NE(first_words({7, "shufflf", 3}), words);
  EXPECT_NE(first_words({7, "shuffle", 4}), words);
  EXPECT_NE(first_words({7, "", 3}), words);
}

// Frozen: a run that is resumed with a later version must draw the same numbers.
TEST(RandomStream, StaysWhatItWas) {
  RandomStream stream(42, "shuffle");
  const uint64_t purpose = [] {
    uint64_t hash = 14695981039346656037u;  // FNV-1a, written out once more
    for (char c : std::string("shuffle")) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    return hash;
  }();
  const Words block = philox({0, 0, static_cast<uint32_t>(purpose), static_cast<uint32_t>(purpose >> 32)}, {42, 0});
  for (uint32_t word : block) EXPECT_EQ(stream.next_u32(), word);
  const Words second = philox({1, 0, static_cast<uint32_t>(purpose), static_cast<uint32_t>(purpose >> 32)}, {42, 0});
  EXPECT_EQ(stream.next_u64(), uint64_t{second[1]} << 32 | second[0]);
}

TEST(RandomStream, BelowStaysBelowAndReachesEverything) {
  RandomStream stream(1, "test");
  std::vector<int> counts(7);
  constexpr int kDraws = 70000;
  for (int i = 0; i < kDraws; ++i) ++counts[stream.below(7)];
  // Binomial: mean 10000, deviation 93; five deviations.
  for (int count : counts) EXPECT_NEAR(count, 10000, 465);
  EXPECT_EQ(stream.below(1), 0u);
  const uint64_t large = (uint64_t{1} << 63) + 1;  // nearly every second draw is rejected
  for (int i = 0; i < 1000; ++i) EXPECT_LT(stream.below(large), large);
  EXPECT_THROW(stream.below(0), InternalError);
}

TEST(RandomStream, UniformAndNormalHaveTheirMoments) {
  RandomStream stream(2, "test");
  constexpr int kDraws = 200000;
  double sum = 0, squares = 0, normal_sum = 0, normal_squares = 0, normal_fourth = 0, products = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double u = stream.uniform();
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u, squares += u * u;
    const double a = stream.normal(), b = stream.normal();
    normal_sum += a, normal_squares += a * a, normal_fourth += a * a * a * a, products += a * b;
  }
  // Five standard errors each: of u 0.2887, of u^2 0.298, of a 1, of a^2 1.414, of a^4 9.8, of ab 1, over the root of
  // the draws.
  const double error = 5 / std::sqrt(kDraws);
  EXPECT_NEAR(sum / kDraws, 1.0 / 2, 0.2887 * error);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.298 * error);
  EXPECT_NEAR(normal_sum / kDraws, 0, error);
  EXPECT_NEAR(normal_squares / kDraws, 1, 1.414 * error);
  EXPECT_NEAR(normal_fourth / kDraws, 3, 9.8 * error);
  EXPECT_NEAR(products / kDraws, 0, error) << "the two numbers of one pair must not depend on each other";
}

TEST(RandomStream, Permutation) {
  auto order = RandomStream(3, "shuffle", 0).permutation(1000);
  EXPECT_EQ(RandomStream(3, "shuffle", 0).permutation(1000), order);
  EXPECT_NE(RandomStream(3, "shuffle", 1).permutation(1000), order);
  EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(order[static_cast<size_t>(i)], i);
  EXPECT_TRUE(RandomStream(3, "shuffle").permutation(0).empty());
  EXPECT_THROW(RandomStream(3, "shuffle").permutation(-1), InternalError);
  // All 6 orders of three appear equally often: mean 2000, deviation 41; five deviations.
  std::map<std::vector<int64_t>, int> counts;
  RandomStream stream(4, "shuffle");
  for (int i = 0; i < 12000; ++i) ++counts[stream.permutation(3)];
  ASSERT_EQ(counts.size(), 6u);
  for (const auto& [_, count] : counts) EXPECT_NEAR(count, 2000, 205);
}

TEST(RandomStream, Tensors) {
  const at::Tensor uniform = RandomStream(5, "init").uniform_tensor({100, 50}, -0.5, 2);
  EXPECT_EQ(uniform.sizes(), (std::vector<int64_t>{100, 50}));
  EXPECT_EQ(uniform.scalar_type(), at::kFloat);
  EXPECT_GE(uniform.min().item<float>(), -0.5f);
  EXPECT_LE(uniform.max().item<float>(), 2.0f);
  EXPECT_NEAR(uniform.mean().item<double>(), 0.75, 5 * 2.5 * 0.2887 / std::sqrt(5000));
  EXPECT_TRUE(at::equal(uniform, RandomStream(5, "init").uniform_tensor({100, 50}, -0.5, 2)));
  EXPECT_FALSE(at::equal(uniform, RandomStream(6, "init").uniform_tensor({100, 50}, -0.5, 2)));

  const at::Tensor normal = RandomStream(5, "init").normal_tensor({5000}, 0.02);
  EXPECT_NEAR(normal.mean().item<double>(), 0, 5 * 0.02 / std::sqrt(5000));
  EXPECT_NEAR(normal.std().item<double>(), 0.02, 5 * 0.02 / std::sqrt(10000));
  EXPECT_EQ(RandomStream(5, "init").normal_tensor({0, 3}, 1).numel(), 0);
}

TEST(RandomStream, DropoutMask) {
  const at::Tensor mask = RandomStream(6, "dropout").dropout_mask({100, 100}, 0.25);
  const at::Tensor dropped = mask == 0;
  EXPECT_TRUE(at::all(at::logical_or(dropped, mask == static_cast<float>(1 / 0.75))).item<bool>());
  EXPECT_NEAR(dropped.sum().item<double>(), 2500, 5 * 43.3);  // binomial: deviation 43.3
  EXPECT_TRUE(at::equal(RandomStream(6, "dropout").dropout_mask({64}, 0), at::ones({64})));
  EXPECT_TRUE(at::equal(RandomStream(6, "dropout").dropout_mask({64}, 1), at::zeros({64})));
  EXPECT_THROW(RandomStream(6, "dropout").dropout_mask({1}, 1.5), InternalError);
  EXPECT_THROW(RandomStream(6, "dropout").dropout_mask({1}, std::nan("")), InternalError);
}

}  // namespace
}  // namespace qalora::tensor
