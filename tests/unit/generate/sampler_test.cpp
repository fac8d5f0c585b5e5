#include "qalora/generate/sampler.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "qalora/core/error.h"

namespace qalora::generate {
namespace {

// Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 in an order that is not sorted.
at::Tensor logits() { return at::log(at::tensor({0.125f, 0.5f, 0.0625f, 0.25f, 0.0625f})); }

std::vector<double> shares(const SamplerOptions& options, int draws = 20000) {
  std::vector<double> counts(5);
  for (int step = 0; step < draws; ++step)
    counts[static_cast<size_t>(sample(logits(), options, static_cast<uint64_t>(step)))] += 1.0 / draws;
  return counts;
}

void expect_shares(const SamplerOptions& options, const std::vector<double>& expected) {
  const auto found = shares(options);
  // Five standard deviations of a share over 20000 draws are at most 5 * 0.5 / sqrt(20000) = 0.018.
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 0.018) << i;
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(expected[i] > 0 || found[i] == 0) << i;
}

TEST(Sampler, GreedyTakesTheFirstLargest) {
  EXPECT_EQ(sample(logits(), {}, 0), 1);
  EXPECT_EQ(sample(at::tensor({1.0f, 3.0f, 3.0f}), {}, 5), 1);
  EXPECT_EQ(sample(logits(), {.temperature = 2, .top_k = 1}, 0), 1);
}

TEST(Sampler, DrawsFromTheDistribution) {
  expect_shares({.temperature = 1}, {0.125, 0.5, 0.0625, 0.25, 0.0625});
  // At temperature 1/2 probabilities are squared: 16, 64, ... over their sum.
  const double total = 0.015625 + 0.25 + 2 * 0.00390625 + 0.0625;
  expect_shares({.temperature = 0.5},
                {0.015625 / total, 0.25 / total, 0.00390625 / total, 0.0625 / total, 0.00390625 / total});
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesIt) {
  expect_shares({.temperature = 1, .top_p = 0.7}, {0, 2.0 / 3, 0, 1.0 / 3, 0});
  expect_shares({.temperature = 1, .top_p = 0.76}, {1.0 / 7, 4.0 / 7, 0, 2.0 / 7, 0});
  expect_shares({.temperature = 1, .top_p = 1e-9}, {0, 1, 0, 0, 0});
}

TEST(Sampler, TopKKeepsTheLikeliest) {
  expect_shares({.temperature = 1, .top_k = 3}, {1.0 / 7, 4.0 / 7, 0, 2.0 / 7, 0});
  // Of the two equal ones the lower id is kept.
  EXPECT_EQ(shares({.temperature = 1, .top_k = 4})[4], 0);
  EXPECT_GT(shares({.temperature = 1, .top_k = 4})[2], 0);
}

TEST(Sampler, IsAFunctionOfSeedAndStep) {
  const SamplerOptions one{.temperature = 1, .seed = 1}, two{.temperature = 1, .seed = 2};
  int differ = 0;
  for (uint64_t step = 0; step < 100; ++step) {
    EXPECT_EQ(sample(logits(), one, step), sample(logits(), one, step));
    differ += sample(logits(), one, step) != sample(logits(), two, step);
  }
  EXPECT_GT(differ, 20);
}

TEST(Sampler, RefusesBadSettingsAndLogits) {
  EXPECT_THROW(check_sampler({.temperature = -1}), UserError);
  EXPECT_THROW(check_sampler({.temperature = std::nan("")}), UserError);
  EXPECT_THROW(check_sampler({.top_p = 0}), UserError);
  EXPECT_THROW(check_sampler({.top_p = 1.5}), UserError);
  EXPECT_THROW(check_sampler({.top_k = -1}), UserError);
  EXPECT_NO_THROW(check_sampler({.temperature = 0.7, .top_p = 0.9, .top_k = 40}));
  EXPECT_THROW(sample(at::tensor({1.0f, std::nanf("")}), {}, 0), DataError);
  EXPECT_THROW(sample(at::tensor({1.0f, std::numeric_limits<float>::infinity()}), {}, 0), DataError);
  EXPECT_EQ(sample(at::tensor({-std::numeric_limits<float>::infinity(), 1.0f}), {.temperature = 1}, 3), 1);
}

}  // namespace
}  // namespace qalora::generate
