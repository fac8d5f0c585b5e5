#include "qalora/quant/round_to_nearest.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qalora/core/error.h"
#include "qalora/tensor/device.h"
#include "qalora/tensor/random.h"

namespace qalora::quant {
namespace {

at::Tensor random_matrix(int64_t rows, int64_t columns, double deviation = 0.02) {
  return tensor::RandomStream(7, "test", rows * 1000 + columns).normal_tensor({rows, columns}, deviation);
}

// Largest |w - restored| in units of what the group allows: half a scale, plus three fp32 roundings (scale, product,
// sum) of numbers no larger than the group's range and its largest weight.
double worst_excess(const at::Tensor& weight, const PackedWeight& packed) {
  const at::Tensor dense = weight.to(at::kDouble), restored = packed.dequantize(at::kFloat).to(at::kDouble);
  double worst = 0;
  for (int64_t group = 0; group < packed.groups(); ++group) {
    const int64_t begin = group * packed.group_size, count = std::min(packed.group_size, packed.in_features - begin);
    const at::Tensor w = dense.narrow(1, begin, count);
    const at::Tensor range = w.amax(1) - w.amin(1),
                     rounding = (range + w.abs().amax(1)) * (3 * std::ldexp(1.0, -24)) + 1e-45;
    const at::Tensor error = (w - restored.narrow(1, begin, count)).abs().amax(1);
    worst =
        std::max(worst, (error / (packed.scales.select(1, group).to(at::kDouble) / 2 + rounding)).max().item<double>());
  }
  return worst;
}

void expect_refused(const at::Tensor& weight, const std::string& part) {
  try {
    round_to_nearest("file: tensor 'w'", weight, 4, 32);
    FAIL() << "accepted; expected: " << part;
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with("file: tensor 'w'")) << error.what();
  }
}

TEST(RoundToNearest, NoWeightMovesByMoreThanHalfAStep) {
  for (int bits : {2, 3, 4}) {
    for (int64_t group_size : {int64_t{32}, int64_t{64}, kWholeRow}) {
      for (int64_t columns : {64, 100, 7}) {
        for (auto type : {at::kFloat, at::kHalf, at::kBFloat16}) {
          const at::Tensor weight = random_matrix(33, columns).to(type);
          const QuantizeResult result = round_to_nearest("w", weight, bits, group_size);
          EXPECT_LE(worst_excess(weight, result.weight), 1.0) << bits << " " << group_size << " " << columns;
          PackedWeight wrong = result.weight;
          wrong.offsets = wrong.offsets + wrong.scales;
          EXPECT_GT(worst_excess(weight, wrong), 1.0);
        }
      }
    }
  }
}

TEST(RoundToNearest, ScaleAndOffsetAreTheGroupsRangeAndMinimum) {
  const at::Tensor weight = random_matrix(5, 96);
  const PackedWeight packed = round_to_nearest("w", weight, 3, 32).weight;
  const at::Tensor groups = weight.reshape({5, 3, 32});
  EXPECT_TRUE(at::equal(packed.offsets, groups.amin(2)));
  const at::Tensor scales = (groups.amax(2).to(at::kDouble) - groups.amin(2).to(at::kDouble)) / 7;
  EXPECT_TRUE(at::equal(packed.scales, scales.to(at::kFloat)));
}

TEST(RoundToNearest, TheLastGroupIsShorter) {
  const at::Tensor weight = random_matrix(3, 80);
  const PackedWeight packed = round_to_nearest("w", weight, 4, 64).weight;
  EXPECT_EQ(packed.groups(), 2);
  EXPECT_TRUE(at::equal(packed.offsets.select(1, 1), weight.narrow(1, 64, 16).amin(1)));
}

TEST(RoundToNearest, WholeRowsHaveOneGroup) {
  const PackedWeight packed = round_to_nearest("w", random_matrix(3, 80), 4, kWholeRow).weight;
  EXPECT_EQ(packed.group_size, 80);
  EXPECT_EQ(packed.groups(), 1);
}

TEST(RoundToNearest, ConstantAndZeroGroupsAreExact) {
  at::Tensor weight = at::zeros({2, 64});
  weight[1].narrow(0, 0, 32).fill_(-0.37);
  const QuantizeResult result = round_to_nearest("w", weight, 2, 32);
  EXPECT_TRUE(at::equal(result.weight.dequantize(at::kFloat), weight));
  EXPECT_TRUE(at::equal(result.weight.scales, at::zeros({2, 2})));
  EXPECT_EQ(result.error, 0);
}

TEST(RoundToNearest, QuantisingAgainKeepsTheCodes) {
  for (int bits : {2, 3, 4}) {
    const PackedWeight once = round_to_nearest("w", random_matrix(17, 96), bits, 32).weight;
    const PackedWeight twice = round_to_nearest("w", once.dequantize(at::kFloat), bits, 32).weight;
    EXPECT_TRUE(at::equal(once.codes, twice.codes)) << bits;
    EXPECT_TRUE(at::equal(once.offsets, twice.offsets)) << bits;
    const PackedWeight other = round_to_nearest("w", random_matrix(17, 96) * -1, bits, 32).weight;
    EXPECT_FALSE(at::equal(once.codes, other.codes)) << bits;
  }
}

TEST(RoundToNearest, TheErrorIsTheRelativeFrobeniusNorm) {
  const at::Tensor weight = random_matrix(9, 100);
  const QuantizeResult result = round_to_nearest("w", weight, 4, 32);
  const at::Tensor dense = weight.to(at::kDouble);
  const double expected =
      ((dense - result.weight.dequantize(at::kFloat).to(at::kDouble)).norm() / dense.norm()).item<double>();
  EXPECT_NEAR(result.error, expected, 1e-12);
  EXPECT_GT(result.error, 0.01);
  EXPECT_GT(round_to_nearest("w", weight, 2, 32).error, 3 * result.error);
}

TEST(RoundToNearest, TheNumberOfThreadsChangesNothing) {
  const at::Tensor weight = random_matrix(50, 128);
  const int threads = tensor::threads();
  tensor::set_threads(1);
  const QuantizeResult one = round_to_nearest("w", weight, 4, 32);
  tensor::set_threads(3);
  const QuantizeResult three = round_to_nearest("w", weight, 4, 32);
  tensor::set_threads(threads);
  EXPECT_TRUE(at::equal(one.weight.codes, three.weight.codes));
  EXPECT_EQ(one.error, three.error);
}

TEST(RoundToNearest, NamesTheWeightThatIsNotFinite) {
  at::Tensor weight = random_matrix(40, 64);
  weight[33][41] = std::numeric_limits<float>::quiet_NaN();
  expect_refused(weight, "row 33, column 41 is nan");
  weight[33][41] = -std::numeric_limits<float>::infinity();
  expect_refused(weight, "row 33, column 41 is -inf");
}

TEST(RoundToNearest, RefusesARangeThatFp32CannotHold) {
  at::Tensor weight = random_matrix(2, 64);
  weight[1][2] = 3e38;
  weight[1][3] = -3e38;
  expect_refused(weight, "row 1, columns 0 to 31 range from -3e+38 to 3e+38");
}

TEST(RoundToNearest, TinyRangesStayFinite) {
  at::Tensor weight = at::zeros({1, 32});
  weight[0][5] = 1e-45;  // the smallest subnormal: its fifteenth part is zero in fp32
  const PackedWeight packed = round_to_nearest("w", weight, 4, 32).weight;
  EXPECT_TRUE(at::isfinite(packed.dequantize(at::kFloat)).all().item<bool>());
}

TEST(RoundToNearest, RefusesWhatIsNoMatrix) {
  expect_refused(at::ones({4}), "[4]");
  expect_refused(at::ones({4, 0}), "[4, 0]");
  expect_refused(at::ones({4, 4}, at::kLong), "Long");
}

TEST(RoundToNearest, NeedsLittleBesideTheWeight) {
  // 256 MB of weights; what is added is the packed result (40 MB) and a row a thread. A second dense copy would show.
  const at::Tensor weight = at::randn({8192, 8192}, at::kFloat);
  const uint64_t before = tensor::peak_memory_bytes();
  const QuantizeResult result = round_to_nearest("w", weight, 4, 32);
  EXPECT_LT(tensor::peak_memory_bytes() - before, result.weight.bytes() + (uint64_t{64} << 20));
}

}  // namespace
}  // namespace qalora::quant
