#include "qalora/core/checked.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace qalora {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();

TEST(Checked, MulAndAdd) {
  EXPECT_EQ(checked_mul(kMax, 1), kMax);
  EXPECT_EQ(checked_mul(kMax, 0), 0u);
  EXPECT_EQ(checked_mul(kMax / 2 + 1, 2), std::nullopt);
  EXPECT_EQ(checked_mul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
  EXPECT_EQ(checked_add(kMax, 1), std::nullopt);
}

TEST(Checked, Elements) {
  const auto elements = [](std::vector<int64_t> shape) { return checked_elements(shape); };
  EXPECT_EQ(elements({}), 1);
  EXPECT_EQ(elements({3, 4, 5}), 60);
  EXPECT_EQ(elements({3, 0}), 0);
  EXPECT_EQ(elements({kLargest}), kLargest);
  EXPECT_EQ(elements({kLargest, 2}), std::nullopt);
  EXPECT_EQ(elements({int64_t{1} << 32, int64_t{1} << 31}), std::nullopt);
  EXPECT_EQ(elements({4, -1}), std::nullopt);
  EXPECT_EQ(elements({-1, -1}), std::nullopt);
}

TEST(Checked, CeilDiv) {
  EXPECT_EQ(ceil_div(0, 32), 0);
  EXPECT_EQ(ceil_div(1, 32), 1);
  EXPECT_EQ(ceil_div(32, 32), 1);
  EXPECT_EQ(ceil_div(33, 32), 2);
}

}  // namespace
}  // namespace qalora
