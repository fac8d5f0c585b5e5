// The reference itself, against answers worked out by hand.
#include "qalora/kernels/reference.h"

#include <gtest/gtest.h>

#include <vector>

namespace qalora::kernels {
namespace {

// Two rows of three 4-bit codes, groups of two: [1 2 | 3] and [4 5 | 6].
struct Small {
  const uint32_t codes[2] = {0x321, 0x654};
  const float scales[4] = {1, 2, 0.5f, -1}, offsets[4] = {0, 10, 1, 3};
  const PackedView view{codes, scales, offsets, 2, 3, 2, 4};
};

TEST(Reference, Dequantize) {
  const Small small;
  std::vector<double> weight(6);
  reference::dequantize(small.view, weight.data());
  EXPECT_EQ(weight, (std::vector<double>{1, 2, 16, 3, 3.5, -3}));
}

TEST(Reference, Matmul) {
  const Small small;
  const std::vector<double> x = {1, 10, 100, 0, 0, 1};
  std::vector<double> y(4);
  reference::matmul(small.view, x.data(), 2, y.data());
  EXPECT_EQ(y, (std::vector<double>{1621, 3 + 35 - 300, 16, -3}));
}

TEST(Reference, MatmulBackward) {
  const Small small;
  const std::vector<double> dy = {1, 10};
  std::vector<double> dx(3);
  reference::matmul_backward(small.view, dy.data(), 1, dx.data());
  EXPECT_EQ(dx, (std::vector<double>{31, 37, 16 - 30}));
}

TEST(Reference, Pool) {
  const std::vector<double> x = {1, 2, 3, 4, 5, 6};
  std::vector<double> out(4);
  reference::pool(x.data(), 2, 3, 2, reference::Pooling::kSum, out.data());
  EXPECT_EQ(out, (std::vector<double>{3, 3, 9, 6}));
  reference::pool(x.data(), 2, 3, 2, reference::Pooling::kMean, out.data());
  EXPECT_EQ(out, (std::vector<double>{1.5, 3, 4.5, 6}));
}

// The identity that a merge rests on: adding c to a group's offset adds c times that group's sum of inputs.
TEST(Reference, AnOffsetAddsTheGroupsSum) {
  Small small;
  const std::vector<double> x = {2, 3, 7};
  std::vector<double> before(2), after(2), sums(2);
  reference::matmul(small.view, x.data(), 1, before.data());
  reference::pool(x.data(), 1, 3, 2, reference::Pooling::kSum, sums.data());
  std::vector<float> offsets(small.offsets, small.offsets + 4);
  offsets[0] += 0.25f;
  PackedView moved = small.view;
  moved.offsets = offsets.data();
  reference::matmul(moved, x.data(), 1, after.data());
  EXPECT_EQ(after[0], before[0] + 0.25 * sums[0]);
  EXPECT_NE(after[0], before[0]);
  EXPECT_EQ(after[1], before[1]);
}

}  // namespace
}  // namespace qalora::kernels
