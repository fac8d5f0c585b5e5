// Rotary frequencies against the papers' formulas written out here in double, and the rotation's backward.
#include "qalora/model/rope.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "qalora/tensor/random.h"

namespace qalora::model {
namespace {

constexpr int64_t kHeadDim = 64, kContext = 4096;
// A handful of operations in double on numbers up to 1.
constexpr double kTolerance = 1e-14;

LlamaConfig config_of(const RopeConfig& rope, int64_t head_dim = kHeadDim) {
  LlamaConfig config;
  config.head_dim = head_dim;
  config.context_length = kContext;
  config.rope = rope;
  return config;
}

RopeConfig rope_of(RopeKind kind, double factor) {
  RopeConfig rope;
  rope.kind = kind;
  rope.theta = 500000;
  rope.factor = factor;
  rope.original_context = 1024;
  return rope;
}

double plain(double theta, size_t i) { return 1 / std::pow(theta, static_cast<double>(2 * i) / kHeadDim); }

// Largest relative distance of the program's frequencies from `expected(i)`.
template <typename F>
double distance(const RopeConfig& rope, int64_t length, F expected) {
  const std::vector<double> ours = Rope::inverse_frequencies(config_of(rope), length);
  EXPECT_EQ(ours.size(), static_cast<size_t>(kHeadDim / 2));
  double worst = 0;
  for (size_t i = 0; i < ours.size(); ++i) worst = std::max(worst, std::abs(ours[i] / expected(i) - 1));
  return worst;
}

TEST(Rope, DefaultAndLinearFrequencies) {
  EXPECT_LE(distance(rope_of(RopeKind::kDefault, 1), kContext, [](size_t i) { return plain(500000, i); }), kTolerance);
  EXPECT_LE(distance(rope_of(RopeKind::kLinear, 4), kContext, [](size_t i) { return plain(500000, i) / 4; }),
            kTolerance);
  EXPECT_GT(distance(rope_of(RopeKind::kLinear, 4), kContext, [](size_t i) { return plain(500000, i); }), 0.5);
  EXPECT_GT(distance(rope_of(RopeKind::kDefault, 1), kContext, [](size_t i) { return plain(10000, i); }), 0.5);
}

TEST(Rope, DynamicStretchesTheBaseBeyondTheTrainedLength) {
  const RopeConfig rope = rope_of(RopeKind::kDynamic, 2);
  for (const int64_t length : {1, 1000, 1024}) {
    EXPECT_LE(distance(rope, length, [](size_t i) { return plain(500000, i); }), kTolerance) << length;
  }
  for (const int64_t length : {1025, 1500, 2048}) {
    // base * ((factor * length / trained) - (factor - 1)) ^ (d / (d - 2))
    const double base = 500000 * std::pow(2.0 * static_cast<double>(length) / 1024 - 1, 64.0 / 62);
    EXPECT_LE(distance(rope, length, [&](size_t i) { return plain(base, i); }), kTolerance) << length;
    EXPECT_GT(distance(rope, length, [](size_t i) { return plain(500000, i); }), 1e-3) << length;
  }
  EXPECT_GT(distance(rope, 2048, [](size_t i) { return plain(500000 * std::pow(3.0, 64.0 / 62) * 2, i); }), 0.1);
}

TEST(Rope, Llama3StretchesLongWavelengthsOnly) {
  RopeConfig rope = rope_of(RopeKind::kLlama3, 8);
  rope.low_freq_factor = 1;
  rope.high_freq_factor = 4;
  // The divisor of each frequency as GGUF stores it (rope_freqs): 1, factor, or a blend of their inverses.
  int kept = 0, stretched = 0, blended = 0;
  const auto divisor = [&](size_t i) {
    const double wavelength = 2 * std::numbers::pi / plain(500000, i);
    if (wavelength < 1024.0 / 4) return ++kept, 1.0;
    if (wavelength > 1024.0 / 1) return ++stretched, 8.0;
    const double t = (1024 / wavelength - 1) / (4 - 1);
    return ++blended, 1 / ((1 - t) / 8 + t);
  };
  EXPECT_LE(distance(rope, kContext, [&](size_t i) { return plain(500000, i) / divisor(i); }), kTolerance);
  EXPECT_GT(kept, 0);
  EXPECT_GT(stretched, 0);
  EXPECT_GT(blended, 0);
  rope.original_context = 2048;  // must differ: the trained length decides which are long
  EXPECT_GT(distance(rope, kContext, [&](size_t i) { return plain(500000, i) / divisor(i); }), 0.1);
}

// Fraction of interpolation of dimension i, from YaRN's text: dimensions that turn more than 32 times over the trained
// length are kept, those that turn less than once are interpolated, with a straight ramp over the dimension in between.
double yarn_expected(size_t i, double theta, double factor, double trained, bool truncate) {
  const auto dimension_turning = [&](double turns) {
    return kHeadDim * std::log(trained / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double first = dimension_turning(32), last = dimension_turning(1);
  if (truncate) first = std::floor(first), last = std::ceil(last);
  const double at = static_cast<double>(i);
  const double share = at <= first ? 0 : at >= last ? 1 : (at - first) / (last - first);
  return plain(theta, i) * (1 - share) + plain(theta, i) / factor * share;
}

TEST(Rope, YarnBlendsOverTheDimensions) {
  RopeConfig rope = rope_of(RopeKind::kYarn, 4);
  for (const bool truncate : {true, false}) {
    rope.truncate = truncate;
    // The ramp's ends come from differences of logarithms, which cost another digit.
    EXPECT_LE(distance(rope, kContext, [&](size_t i) { return yarn_expected(i, 500000, 4, 1024, truncate); }),
              10 * kTolerance);
    EXPECT_GT(distance(rope, kContext, [&](size_t i) { return yarn_expected(i, 500000, 4, 1024, !truncate); }), 1e-3);
    EXPECT_GT(distance(rope, kContext, [&](size_t i) { return plain(500000, i) / 4; }), 1e-1);
  }
  rope.beta_fast = 8;
  EXPECT_GT(distance(rope, kContext, [&](size_t i) { return yarn_expected(i, 500000, 4, 1024, false); }), 1e-2);
}

TEST(Rope, YarnMultipliesCosAndSinByItsAttentionFactor) {
  RopeConfig rope = rope_of(RopeKind::kYarn, 4);
  const double standard = 0.1 * std::log(4.0) + 1;
  EXPECT_DOUBLE_EQ(Rope::attention_factor(rope), standard);
  rope.mscale = 0.7;
  EXPECT_DOUBLE_EQ(Rope::attention_factor(rope), standard);  // both or neither
  rope.mscale_all_dim = 0.5;
  EXPECT_DOUBLE_EQ(Rope::attention_factor(rope), (0.07 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1));
  rope.attention_factor = 1.25;
  EXPECT_DOUBLE_EQ(Rope::attention_factor(rope), 1.25);
  EXPECT_EQ(Rope::attention_factor(rope_of(RopeKind::kLinear, 4)), 1);

  const auto [cos, sin] = Rope(config_of(rope), 16).at(at::arange(16, at::kLong));
  // cos^2 + sin^2 is the factor squared; three roundings to f32 of numbers below 2.
  const double tolerance = 4 * std::ldexp(1.0, -24) * 1.5625;
  EXPECT_LE((cos.square() + sin.square() - 1.5625).abs().max().item<double>(), tolerance);
  EXPECT_GT((cos.square() + sin.square() - standard * standard).abs().max().item<double>(), 1e-2);
}

TEST(Rope, AnglesStayExactFarOut) {
  const int64_t far = 100000;
  RopeConfig rope = rope_of(RopeKind::kDefault, 1);
  rope.theta = 10000;
  const auto [cos, sin] = Rope(config_of(rope), far + 1).at(at::tensor({far}, at::kLong));
  double worst = 0, worst_in_f32 = 0;
  for (int64_t i = 0; i < kHeadDim / 2; ++i) {
    const double frequency = plain(10000, static_cast<size_t>(i)),
                 expected = std::cos(static_cast<double>(far) * frequency);
    worst = std::max(worst, std::abs(cos[0][i].item<double>() - expected));
    const double rounded = static_cast<double>(static_cast<float>(far) * static_cast<float>(frequency));
    worst_in_f32 = std::max(worst_in_f32, std::abs(std::cos(rounded) - expected));
  }
  // One rounding to f32, and the angle's own error in double: 1e5 * 2^-52.
  EXPECT_LE(worst, std::ldexp(1.0, -24) + 1e-10);
  EXPECT_GT(worst_in_f32, 1e-4);  // what tables made in f32 would lose
}

TEST(Rope, RotatesHalvesAgainstEachOther) {
  const Rope rope(config_of(rope_of(RopeKind::kDefault, 1), 8), 32);
  const at::Tensor x = tensor::RandomStream(3, "x").normal_tensor({4, 2, 8}, 1.0),
                   positions = at::tensor({0, 5, 9, 31}, at::kLong);
  const auto [cos, sin] = rope.at(positions);
  const at::Tensor y = Rope::apply(x, cos, sin);
  double worst = 0, interleaved = 0;
  for (int64_t token = 0; token < 4; ++token) {
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t i = 0; i < 4; ++i) {
        const double angle = positions[token].item<double>() * std::pow(500000.0, -2.0 * static_cast<double>(i) / 8);
        const auto value = [&](int64_t at) { return x[token][head][at].item<double>(); };
        const double got = y[token][head][i].item<double>();
        worst = std::max(worst, std::abs(got - (value(i) * std::cos(angle) - value(i + 4) * std::sin(angle))));
        interleaved = std::max(interleaved,
                               std::abs(got - (value(2 * i) * std::cos(angle) - value(2 * i + 1) * std::sin(angle))));
      }
    }
  }
  EXPECT_LE(worst, 4 * 4 * std::ldexp(1.0, -24));  // four roundings of numbers below 4
  EXPECT_GT(interleaved, 0.1);
  EXPECT_TRUE(at::equal(y[0], x[0]));  // position 0 does not turn
}

TEST(Rope, BackwardEqualsFiniteDifferences) {
  const Rope rope(config_of(rope_of(RopeKind::kYarn, 4), 8), 32);
  const auto [cos, sin] = rope.at(at::tensor({1, 7, 30}, at::kLong));
  const at::Tensor x = tensor::RandomStream(3, "x").normal_tensor({3, 2, 8}, 1.0).requires_grad_(true);
  const at::Tensor dy = tensor::RandomStream(3, "dy").normal_tensor({3, 2, 8}, 1.0);
  (Rope::apply(x, cos, sin) * dy).sum().backward();
  // The rotation in double, from the same tables.
  const at::Tensor c = cos.to(at::kDouble).unsqueeze(1), s = sin.to(at::kDouble).unsqueeze(1),
                   weights = dy.to(at::kDouble);
  const auto value = [&](const at::Tensor& p) {
    const at::Tensor turned = at::cat({p.narrow(-1, 4, 4).neg(), p.narrow(-1, 0, 4)}, -1);
    return ((p * c + turned * s) * weights).sum().item<double>();
  };
  at::Tensor point = x.detach().to(at::kDouble).clone();
  const at::Tensor flat = point.view({-1}), numeric = at::empty_like(flat);
  for (int64_t i = 0; i < flat.size(0); ++i) {
    const double kept = flat[i].item<double>();
    flat[i].fill_(kept + 0.5);  // a linear map: any step gives the exact slope
    const double above = value(point);
    flat[i].fill_(kept - 0.5);
    numeric[i].fill_(above - value(point));
    flat[i].fill_(kept);
  }
  const auto off = [&](const at::Tensor& gradient) {
    return (gradient.to(at::kDouble).view({-1}) - numeric).abs().max().item<double>();
  };
  EXPECT_LE(off(x.grad()), 4 * 4 * 1.2 * std::ldexp(1.0, -24));  // two products and a sum of numbers below 4 x 1.2
  EXPECT_GT(off(Rope::apply(dy, cos, sin)), 0.1);                // turned forwards instead of back
}

}  // namespace
}  // namespace qalora::model
