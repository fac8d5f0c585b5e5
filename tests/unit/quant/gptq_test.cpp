#include "qalora/quant/gptq.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "qalora/core/error.h"
#include "qalora/quant/round_to_nearest.h"
#include "qalora/tensor/random.h"

namespace qalora::quant {
namespace {

at::Tensor normal(int64_t rows, int64_t columns, const char* purpose, double deviation = 1) {
  return tensor::RandomStream(11, purpose, rows * 10007 + columns).normal_tensor({rows, columns}, deviation);
}

// Inputs that have much in common, of very different sizes: [tokens, in_features]
at::Tensor activations(int64_t tokens, int64_t in_features) {
  const at::Tensor common = normal(tokens, 8, "factors").mm(normal(8, in_features, "loadings"));
  return (common + normal(tokens, in_features, "noise", 0.3)) * (0.1 + normal(1, in_features, "sizes").abs());
}

at::Tensor hessian_of(const at::Tensor& inputs) {
  Hessian hessian(inputs.size(1), at::kCPU);
  hessian.add(inputs);
  return hessian.matrix();
}

double loss_of(const at::Tensor& weight, const PackedWeight& packed, const at::Tensor& hessian) {
  const at::Tensor difference = weight.to(at::kDouble) - packed.dequantize(at::kFloat).to(at::kDouble);
  return (difference.mm(hessian.to(at::kDouble)) * difference).sum().item<double>();
}

// What rounding may make of the loss: in_features products in fp32 for each of its terms (DESIGN: a tolerance comes
// from dtype and length).
double rounding_of(const at::Tensor& weight, const PackedWeight& packed, const at::Tensor& hessian) {
  const at::Tensor difference = (weight.to(at::kDouble) - packed.dequantize(at::kFloat).to(at::kDouble)).abs();
  const double size = (difference.mm(hessian.abs().to(at::kDouble)) * difference).sum().item<double>();
  return size * static_cast<double>(packed.in_features + 2) * std::ldexp(1.0, -24);
}

at::Tensor codes_of(const PackedWeight& packed) {
  at::Tensor codes = at::empty({packed.out_features(), packed.in_features}, at::kByte);
  for (int64_t row = 0; row < packed.out_features(); ++row) {
    kernels::unpack_row(packed.view().codes + row * packed.view().words(), packed.in_features, packed.bits,
                        codes.data_ptr<uint8_t>() + row * packed.in_features);
  }
  return codes;
}

GptqOptions plain(int bits, int64_t group_size) {
  GptqOptions options = GptqOptions::reference_rule(bits, group_size);
  options.integer_zeros = false;
  return options;
}

void expect_refused(const at::Tensor& weight, const at::Tensor& hessian, const std::string& part) {
  try {
    gptq("file: tensor 'w'", weight, hessian, {});
    FAIL() << "accepted; expected: " << part;
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with("file: tensor 'w'")) << error.what();
  }
}

// ---- Hessian

TEST(GptqHessian, EqualsTheSumInDoubleHoweverItIsBatched) {
  constexpr int64_t kTokens = 300, kColumns = 70;
  const at::Tensor x = activations(kTokens, kColumns), wide = x.to(at::kDouble);
  const at::Tensor exact = wide.t().mm(wide) * (2.0 / kTokens);
  for (int64_t batch : {1, 7, 300}) {
    Hessian hessian(kColumns, at::kCPU);
    for (int64_t first = 0; first < kTokens; first += batch)
      hessian.add(x.slice(0, first, std::min(first + batch, kTokens)));
    EXPECT_EQ(hessian.tokens(), kTokens);
    // Each product of a batch of b tokens sums b fp32 products: b roundings of 2^-24 of the sum of magnitudes, here at
    // most the square root of two diagonal entries; one more when the result is stored.
    const at::Tensor size = exact.diagonal().sqrt().outer(exact.diagonal().sqrt());
    const at::Tensor matrix = hessian.matrix().to(at::kDouble);
    EXPECT_LE(((matrix - exact).abs() / size).max().item<double>(),
              (static_cast<double>(batch) + 1) * std::ldexp(1.0, -24))
        << batch;
    EXPECT_TRUE(matrix.equal(matrix.t()));
  }
}

TEST(GptqHessian, ErrorDoesNotGrowWithTheNumberOfBatches) {
  const at::Tensor x = activations(16, 8), wide = x.to(at::kDouble);
  Hessian hessian(8, at::kCPU);
  at::Tensor naive = at::zeros({8, 8});  // must differ: the same sum in fp32
  constexpr int kBatches = 20000;
  for (int i = 0; i < kBatches; ++i) hessian.add(x), naive += x.t().mm(x);
  const at::Tensor exact = wide.t().mm(wide) * (2.0 / 16),
                   size = exact.diagonal().sqrt().outer(exact.diagonal().sqrt());
  const auto distance = [&](const at::Tensor& matrix) {
    return ((matrix.to(at::kDouble) - exact).abs() / size).max().item<double>();
  };
  EXPECT_LE(distance(hessian.matrix()), 17 * std::ldexp(1.0, -24));
  EXPECT_GT(distance(naive * (2.0 / 16 / kBatches)), 17 * std::ldexp(1.0, -24));
}

TEST(GptqHessian, PanelsMeetBeyondOneAndSixteenBitsAreTaken) {
  const at::Tensor x = activations(40, 2100).to(at::kBFloat16), wide = x.to(at::kDouble);
  const at::Tensor exact = wide.t().mm(wide) * (2.0 / 40), matrix = hessian_of(x).to(at::kDouble);
  const at::Tensor size = exact.diagonal().sqrt().outer(exact.diagonal().sqrt());
  EXPECT_LE(((matrix - exact).abs() / size).max().item<double>(), 41 * std::ldexp(1.0, -24));
  EXPECT_TRUE(matrix.equal(matrix.t()));
}

// ---- the walk over the columns

// The algorithm as the paper derives it (optimal brain quantisation): after each column the remaining weights move to
// the minimum of the loss given what is fixed, by an explicit solve in double. No Cholesky factor, no blocks.
at::Tensor walk_in_double(const at::Tensor& weight, const at::Tensor& hessian, const PackedWeight& grids,
                          double damping) {
  at::Tensor w = weight.to(at::kDouble).clone(), h = hessian.to(at::kDouble).clone();
  h.diagonal().add_(h.diagonal().mean() * damping);
  const int64_t rows = w.size(0), columns = w.size(1);
  at::Tensor codes = at::zeros({rows, columns}, at::kByte);
  for (int64_t i = 0; i < columns; ++i) {
    const int64_t group = i / grids.group_size;
    const at::Tensor scale = grids.scales.select(1, group).to(at::kDouble),
                     offset = grids.offsets.select(1, group).to(at::kDouble);
    const at::Tensor code = ((w.select(1, i) - offset) / scale).round().clamp(0, (1 << grids.bits) - 1);
    const at::Tensor error = w.select(1, i) - (code * scale + offset);  // [rows]
    codes.select(1, i).copy_(code);
    if (i + 1 == columns) break;
    // min over d of (error, d) H (error, d)^T in the remaining columns: d = -error H_ir H_rr^-1, and the weights take
    // -d.
    const at::Tensor rest = h.slice(0, i + 1).slice(1, i + 1), across = h.slice(0, i + 1).select(1, i);
    const at::Tensor move = at::linalg_solve(rest, across);  // [columns - i - 1]
    w.slice(1, i + 1).add_(error.outer(move));
  }
  return codes;
}

TEST(Gptq, EveryColumnMovesTheRestToTheirMinimum) {
  const at::Tensor weight = normal(9, 40, "weight", 0.02), hessian = hessian_of(activations(200, 40));
  for (int64_t block : {5, 16, 128}) {
    GptqOptions options = plain(4, 20);
    options.static_groups = true, options.block_columns = block;
    const GptqResult result = gptq("w", weight, hessian, options);
    const at::Tensor exact = walk_in_double(weight, hessian, result.weight, options.damping),
                     codes = codes_of(result.weight);
    EXPECT_TRUE(codes.equal(exact)) << block << ": " << codes.ne(exact).sum().item<int64_t>() << " codes differ";
    EXPECT_FALSE(codes.equal(walk_in_double(weight, hessian, result.weight, 10 * options.damping)));  // must differ
  }
}

TEST(Gptq, ScalesComeFromTheUpdatedWeightsWhateverTheBlock) {
  const at::Tensor weight = normal(6, 96, "weight", 0.02), hessian = hessian_of(activations(300, 96));
  GptqOptions options = plain(3, 32);
  options.block_columns = 32;
  const GptqResult first = gptq("w", weight, hessian, options);
  for (int64_t block : {7, 64, 100, 500}) {  // parts of a group, two groups, three and a rest
    options.block_columns = block;
    const GptqResult other = gptq("w", weight, hessian, options);
    EXPECT_TRUE(codes_of(other.weight).equal(codes_of(first.weight))) << block;
    EXPECT_TRUE(at::allclose(other.weight.scales, first.weight.scales, 2e-5, 0)) << block;
  }
  options.static_groups = true;
  EXPECT_FALSE(
      at::allclose(gptq("w", weight, hessian, options).weight.scales, first.weight.scales, 2e-5, 0));  // must differ
}

TEST(Gptq, WithoutCorrelationItIsRoundingToNearest) {
  const at::Tensor weight = normal(12, 64, "weight", 0.02),
                   diagonal = normal(1, 64, "diagonal").abs().add(0.1).squeeze(0);
  GptqOptions options = plain(3, 16);
  for (const bool order : {false, true}) {
    options.act_order = order;
    const GptqResult result = gptq("w", weight, diagonal.diag(), options);
    const PackedWeight nearest = round_to_nearest("w", weight, 3, 16).weight;
    EXPECT_TRUE(result.weight.codes.equal(nearest.codes) && result.weight.offsets.equal(nearest.offsets));
    // Scales are quotients in fp32 here, rounded from double there.
    EXPECT_NEAR(result.loss, result.loss_round_to_nearest, 1e-5 * result.loss);
  }
  // Must differ: with inputs in common the errors go on, and the loss falls well below.
  const GptqResult shared = gptq("w", weight, hessian_of(activations(200, 64)), options);
  EXPECT_FALSE(shared.weight.codes.equal(round_to_nearest("w", weight, 3, 16).weight.codes));
  EXPECT_LT(shared.loss, 0.6 * shared.loss_round_to_nearest);
}

TEST(Gptq, OrderOfColumnsAndRowsIsNoPartOfTheResult) {
  const at::Tensor weight = normal(10, 64, "weight", 0.02), hessian = hessian_of(activations(200, 64));
  const at::Tensor rows = at::tensor({3, 1, 4, 0, 9, 2, 6, 5, 8, 7}, at::kLong);
  const GptqOptions options;
  const GptqResult result = gptq("w", weight, hessian, options),
                   turned = gptq("w", weight.index_select(0, rows), hessian, options);
  EXPECT_TRUE(turned.weight.codes.equal(result.weight.codes.index_select(0, rows)));
  EXPECT_TRUE(at::allclose(turned.weight.scales, result.weight.scales.index_select(0, rows), 1e-5, 0));
  EXPECT_FALSE(turned.weight.codes.equal(result.weight.codes));  // must differ
  // H in another order than the weight's columns (here reversed) loses most of the gain.
  const GptqResult wrong = gptq("w", weight, at::flip(hessian, {0, 1}), options);
  EXPECT_GT(loss_of(weight, wrong.weight, hessian), 3 * loss_of(weight, result.weight, hessian));
}

TEST(Gptq, TheUnitOfTheInputsDoesNotMatter) {
  at::Tensor weight = normal(8, 64, "weight", 0.02), inputs = activations(200, 64);
  inputs.select(1, 5).zero_(), inputs.select(1, 40).zero_();
  const at::Tensor hessian = hessian_of(inputs);
  const GptqResult result = gptq("w", weight, hessian, {}),
                   small = gptq("w", weight, hessian * std::ldexp(1.0, -30), {});
  EXPECT_TRUE(small.weight.codes.equal(result.weight.codes));
  EXPECT_TRUE(at::allclose(small.weight.scales, result.weight.scales, 1e-5, 0));
  EXPECT_EQ(result.dead_inputs, 2);
}

// ---- the refit

// The gradient of the loss in scales and offsets, each in units of what the loss's own curvature makes of a whole
// scale.
double steepness(const at::Tensor& weight, const PackedWeight& packed, const at::Tensor& hessian) {
  const int64_t size = packed.group_size;
  const at::Tensor difference = weight.to(at::kDouble) - packed.dequantize(at::kFloat).to(at::kDouble);
  const at::Tensor slope = difference.mm(hessian.to(at::kDouble));
  const at::Tensor codes = codes_of(packed).to(at::kDouble) - ((1 << packed.bits) - 1) / 2.0;
  double worst = 0;
  for (int64_t group = 0; group < packed.groups(); ++group) {
    const int64_t first = group * size, count = std::min(size, packed.in_features - first);
    const at::Tensor block = hessian.narrow(0, first, count).narrow(1, first, count).to(at::kDouble),
                     c = codes.narrow(1, first, count);
    const at::Tensor r = slope.narrow(1, first, count), scale = packed.scales.select(1, group).to(at::kDouble);
    const at::Tensor by_scale = (r * c).sum(1).abs() / ((c.mm(block) * c).sum(1) * scale);
    const at::Tensor by_offset = r.sum(1).abs() / (block.sum() * scale);
    worst = std::max({worst, by_scale.max().item<double>(), by_offset.max().item<double>()});
  }
  return worst;
}

TEST(GptqRefit, EndsWhereTheLossIsFlat) {
  for (int64_t columns : {96, 80}) {  // 80: a short group at the end
    const at::Tensor weight = normal(8, columns, "weight", 0.02), hessian = hessian_of(activations(400, columns));
    for (int bits : {2, 4}) {
      GptqOptions options = plain(bits, 32);
      const GptqResult before = gptq("w", weight, hessian, options);
      options.refit = true;
      const GptqResult after = gptq("w", weight, hessian, options);
      EXPECT_TRUE(after.weight.codes.equal(before.weight.codes));  // sweeps are 0
      const at::Tensor damped = hessian + at::eye(columns) * hessian.diagonal().mean() * options.damping;
      // In units of a scale: fp32 products of some hundred terms, and the ridge's millionth of a step.
      EXPECT_LE(steepness(weight, after.weight, damped), 1e-4) << bits;
      EXPECT_GT(steepness(weight, before.weight, damped), 1e-2) << bits;  // must differ
      EXPECT_LT(loss_of(weight, after.weight, hessian), loss_of(weight, before.weight, hessian));
      EXPECT_DOUBLE_EQ(after.loss_before_refit, before.loss);
    }
  }
}

TEST(GptqRefit, NeverRaisesTheLoss) {
  for (int64_t tokens : {1, 3, 500}) {
    for (int64_t group_size : {int64_t{8}, int64_t{32}, kWholeRow}) {
      for (const bool integer : {false, true}) {
        const at::Tensor weight = normal(7, 72, "weight", 0.02), hessian = hessian_of(activations(tokens, 72));
        GptqOptions options;
        options.bits = 2, options.group_size = group_size, options.integer_zeros = integer;
        for (const int sweeps : {0, 1, 3}) {
          options.sweeps = sweeps;
          const GptqResult result = gptq("w", weight, hessian, options);
          EXPECT_LE(result.loss, result.loss_before_refit);
          EXPECT_TRUE((result.weight.scales >= 0).all().item<bool>());
          const double exact = loss_of(weight, result.weight, hessian);
          EXPECT_NEAR(result.loss, exact, rounding_of(weight, result.weight, hessian));
          if (tokens == 500) {
            EXPECT_LT(result.loss, 0.99 * result.loss_before_refit) << group_size << " " << integer << " " << sweeps;
          }
        }
      }
    }
  }
}

// 24 tokens say nothing about most directions of 96 inputs: there a fit that only knows of the tokens may do what it
// likes.
TEST(GptqRefit, LeavesAloneWhatTheInputsSayNothingOf) {
  const at::Tensor weight = normal(16, 96, "weight", 0.02), hessian = hessian_of(activations(24, 96));
  GptqOptions options;
  options.bits = 4;
  options.sweeps = 0;
  const double refitted = gptq("w", weight, hessian, options).error;
  options.refit = false;
  const double plain_error = gptq("w", weight, hessian, options).error;
  EXPECT_LT(refitted, 1.1 * plain_error);
  options.refit = true;
  options.damping = 1e-7;  // must differ
  EXPECT_GT(gptq("w", weight, hessian, options).error, 1.5 * refitted);
}

TEST(GptqRefit, IntegerZerosStay) {
  const at::Tensor weight = normal(9, 64, "weight", 0.02), hessian = hessian_of(activations(300, 64));
  for (int bits : {2, 3, 4}) {
    GptqOptions options;
    options.bits = bits, options.integer_zeros = true;
    const auto farthest = [&] {
      const PackedWeight packed = gptq("w", weight, hessian, options).weight;
      const at::Tensor zeros = packed.offsets.div(packed.scales).neg();
      EXPECT_TRUE(zeros.round().ge(0).logical_and(zeros.round().le((1 << bits) - 1)).all().item<bool>());
      return (zeros - zeros.round()).abs().max().item<double>();
    };
    EXPECT_LE(farthest(), 16 * std::ldexp(1.0, -23));  // a product and a quotient of numbers up to 15
    options.integer_zeros = false;
    const PackedWeight real = gptq("w", weight, hessian, options).weight;  // must differ
    EXPECT_GT(real.offsets.div(real.scales).frac().abs().mean().item<double>(), 0.05);
  }
}

// ---- edges

TEST(Gptq, EveryShapeBitsAndGroupSize) {
  for (int64_t columns : {1, 31, 100, 300}) {
    const at::Tensor weight = normal(5, columns, "weight", 0.02),
                     hessian = hessian_of(activations(columns + 50, columns));
    for (int bits : {2, 3, 4}) {
      for (int64_t group_size : {int64_t{32}, int64_t{48}, int64_t{64}, int64_t{256}, kWholeRow}) {
        for (const bool fixed : {false, true}) {
          GptqOptions options;
          options.bits = bits, options.group_size = group_size, options.static_groups = fixed;
          const GptqResult result = gptq("w", weight, hessian, options);
          const std::string where = message(columns, " inputs, ", bits, " bits, groups of ", group_size);
          EXPECT_EQ(result.weight.groups(), group_size == kWholeRow ? 1 : (columns + group_size - 1) / group_size)
              << where;
          EXPECT_LE(result.loss, result.loss_round_to_nearest * (1 + 1e-6)) << where;
          const double exact = loss_of(weight, result.weight, hessian);
          EXPECT_NEAR(result.loss, exact, rounding_of(weight, result.weight, hessian)) << where;
        }
      }
    }
  }
}

TEST(Gptq, FewerTokensThanInputs) {
  // One token: H has rank one, and a layer's output can nearly always be met.
  const at::Tensor weight = normal(6, 64, "weight", 0.02);
  const GptqResult one = gptq("w", weight, hessian_of(activations(1, 64)), {});
  EXPECT_LT(one.loss, 1e-3 * one.loss_round_to_nearest);
  EXPECT_EQ(one.damping, 0.01);
  // None: nothing is known of the inputs, which then all count as dead.
  const GptqResult none = gptq("w", weight, Hessian(64, at::kCPU).matrix(), {});
  EXPECT_EQ(none.dead_inputs, 64);
  EXPECT_EQ(none.loss, 0);
}

TEST(Gptq, DampingGrowsUntilTheFactorExists) {
  const at::Tensor weight = normal(4, 32, "weight", 0.02);
  at::Tensor hessian = hessian_of(activations(200, 32));
  EXPECT_EQ(gptq("w", weight, hessian, {}).damping, 0.01);
  // Not positive semidefinite: an eigenvalue of minus a third of the mean diagonal.
  const double mean = hessian.diagonal().mean().item<double>();
  const at::Tensor direction = at::full({32}, std::sqrt(1.0 / 32));
  const at::Tensor along = direction.matmul(hessian).matmul(direction);
  const at::Tensor broken = hessian - direction.outer(direction) * (along.item<double>() + mean / 3);
  const GptqResult result = gptq("w", weight, broken, {});
  EXPECT_EQ(result.damping, 1.0);
  EXPECT_TRUE(at::isfinite(result.weight.scales).all().item<bool>());
  // Far from it: refused.
  expect_refused(weight, hessian - at::ones({32, 32}) * (1e4 * mean), "not positive semidefinite");
}

TEST(Gptq, RefusesWhatIsNotFinite) {
  at::Tensor weight = normal(4, 32, "weight", 0.02);
  const at::Tensor hessian = hessian_of(activations(100, 32));
  at::Tensor bad = hessian.clone();
  bad[3][7] = std::numeric_limits<float>::quiet_NaN();
  expect_refused(weight, bad, "activations overflow");
  bad[3][7] = std::numeric_limits<float>::infinity();
  expect_refused(weight, bad, "activations overflow");
  weight[2][9] = std::numeric_limits<float>::quiet_NaN();
  expect_refused(weight, hessian, "row 2, column 9");
}

TEST(Gptq, ConstantGroupsAndZeroWeightsStayExact) {
  at::Tensor weight = normal(4, 64, "weight", 0.02);
  weight.slice(1, 0, 32).fill_(0.25), weight[2].zero_();
  const at::Tensor diagonal = at::ones({64}).diag();
  for (const bool integer : {false, true}) {
    GptqOptions options;
    options.integer_zeros = integer;
    const at::Tensor dense = gptq("w", weight, diagonal, options).weight.dequantize(at::kFloat);
    EXPECT_EQ(dense[2].abs().max().item<float>(), 0);
    EXPECT_NEAR(dense[0].slice(0, 0, 32).sub(0.25).abs().max().item<double>(), 0, 1e-7);
  }
}

}  // namespace
}  // namespace qalora::quant
