// x . W^T for a few tokens, per instruction set, against the double reference.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "qalora/kernels/isa.h"
#include "qalora/kernels/reference.h"

namespace qalora::kernels {
namespace {

struct Shape {
  int64_t out_features, in_features, group_size;
};

const Shape kShapes[] = {{5, 256, 32}, {3, 512, 128}, {2, 256, 256}, {3, 100, 32},  {3, 99, 32}, {4, 1, 32},
                         {3, 72, 24},  {3, 50, 7},    {2, 333, 333}, {1, 4096, 32}, {3, 104, 8}};

class Matvec : public testing::TestWithParam<const Isa*> {
 protected:
  void SetUp() override {
    if (!GetParam()->supported()) GTEST_SKIP() << "this processor has no " << GetParam()->name;
  }
};

TEST_P(Matvec, AgreesWithTheDoubleReference) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (const Shape& shape : kShapes) {
      for (int64_t tokens : {1, 2, 3, 4, 7}) {
        PackedView view{nullptr, nullptr, nullptr, shape.out_features, shape.in_features, shape.group_size, bits};
        std::vector<uint32_t> codes(static_cast<size_t>(view.out_features * view.words()));
        std::vector<float> scales(static_cast<size_t>(view.out_features * view.groups())), offsets(scales.size());
        std::vector<float> x(static_cast<size_t>(tokens * view.in_features));
        for (auto& word : codes) word = static_cast<uint32_t>(random());
        for (auto* values : {&scales, &offsets, &x}) {
          for (auto& value : *values) value = normal(random);
        }
        view.codes = codes.data(), view.scales = scales.data(), view.offsets = offsets.data();
        const std::vector<double> exact_x(x.begin(), x.end());
        std::vector<double> expected(static_cast<size_t>(tokens * view.out_features)),
            weight(static_cast<size_t>(view.out_features * view.in_features));
        reference::matmul(view, exact_x.data(), tokens, expected.data());
        reference::dequantize(view, weight.data());
        std::vector<float> y(expected.size(), 99);
        GetParam()->matvec(view, x.data(), tokens, 0, view.out_features, y.data());
        for (int64_t token = 0; token < tokens; ++token) {
          for (int64_t row = 0; row < view.out_features; ++row) {
            // Each product errs by two roundings of the weight and one of its own, each running sum by one a step: at
            // most (in_features + 3) half ulps of the sum of the sizes (|scale * code| + |offset| bounds the weight's
            // own parts).
            double sizes = 0;
            for (int64_t k = 0; k < view.in_features; ++k) {
              const auto group = static_cast<size_t>(row * view.groups() + k / view.group_size);
              const double w = weight[static_cast<size_t>(row * view.in_features + k)], b = offsets[group];
              sizes += std::fabs(exact_x[static_cast<size_t>(token * view.in_features + k)]) *
                       (std::fabs(w - b) + std::fabs(b));
            }
            const auto at = static_cast<size_t>(token * view.out_features + row);
            ASSERT_NEAR(y[at], expected[at], 0x1p-24 * static_cast<double>(view.in_features + 3) * sizes)
                << "bits " << bits << " in " << view.in_features << " group " << view.group_size << " tokens "
                << tokens;
          }
        }
      }
    }
  }
}

TEST_P(Matvec, ExactOnWholeNumbersAndWritesOnlyItsRows) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    // Weight 2 * code - 1 with code k mod 4, inputs 1, 2, 3: sums far below 2^24 are exact in any order.
    constexpr int64_t kIn = 77, kOut = 6, kTokens = 5;
    PackedView view{nullptr, nullptr, nullptr, kOut, kIn, 32, bits};
    std::vector<uint32_t> codes(static_cast<size_t>(kOut * view.words()));
    std::vector<float> scales(static_cast<size_t>(kOut * view.groups()), 2), offsets(scales.size(), -1),
        x(kTokens * kIn);
    std::vector<uint8_t> row_codes(kIn);
    for (size_t k = 0; k < row_codes.size(); ++k) row_codes[k] = static_cast<uint8_t>(k % 4);
    for (int64_t row = 0; row < kOut; ++row) pack_row(row_codes.data(), kIn, bits, codes.data() + row * view.words());
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(1 + i % 3);
    view.codes = codes.data(), view.scales = scales.data(), view.offsets = offsets.data();
    const std::vector<double> exact_x(x.begin(), x.end());
    std::vector<double> expected(kTokens * kOut);
    reference::matmul(view, exact_x.data(), kTokens, expected.data());
    std::vector<float> y(expected.size(), 99);
    GetParam()->matvec(view, x.data(), kTokens, 1, 4, y.data());
    for (size_t i = 0; i < y.size(); ++i) {
      const bool mine = i % kOut >= 1 && i % kOut < 4;
      ASSERT_EQ(y[i], mine ? expected[i] : 99) << "bits " << bits << " at " << i;
    }
    x[0] += 1;
    const float before = y[1];
    GetParam()->matvec(view, x.data(), kTokens, 1, 4, y.data());
    ASSERT_NE(y[1], before);
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, Matvec, testing::Values(&kIsas[0], &kIsas[1], &kIsas[2]),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(MatvecRows, RefusesBadArguments) {
  const uint32_t codes[4] = {};
  const float numbers[32] = {};
  float y[2] = {};
  const PackedView view{codes, numbers, numbers, 1, 32, 32, 4};
  EXPECT_EQ(matvec_rows(view, numbers, 1, 0, 1, y), Status::kOk);
  EXPECT_EQ(matvec_rows(view, numbers, 0, 0, 1, y), Status::kOk);
  EXPECT_EQ(matvec_rows(view, nullptr, 1, 0, 1, y), Status::kBadArgument);
  EXPECT_EQ(matvec_rows(view, numbers, -1, 0, 1, y), Status::kBadArgument);
  EXPECT_EQ(matvec_rows(view, numbers, 1, 0, 2, y), Status::kBadArgument);
  EXPECT_EQ(matvec_rows(view, numbers, 1, 0, 1, nullptr), Status::kBadArgument);
  PackedView wrong = view;
  wrong.bits = 7;
  EXPECT_EQ(matvec_rows(wrong, numbers, 1, 0, 1, y), Status::kUnsupported);
}

}  // namespace
}  // namespace qalora::kernels
