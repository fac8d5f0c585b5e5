#include "qalora/quant/packed_weight.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "qalora/kernels/reference.h"
#include "qalora/tensor/random.h"
#include "support/support.h"

namespace qalora::quant {
namespace {

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

void expect_refused(const std::string& part, const at::Tensor& codes, const at::Tensor& scales,
                    const at::Tensor& offsets, int64_t in_features, int64_t group_size, int bits) {
  try {
    make_packed_weight("here: module 'm'", codes, scales, offsets, in_features, group_size, bits);
    FAIL() << "accepted; expected: " << part;
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with("here: module 'm'")) << error.what();
  }
}

PackedWeight random_weight(int bits, int64_t rows, int64_t in_features, int64_t group_size) {
  const int64_t groups = kernels::groups_per_row(in_features, group_size);
  const int64_t words = kernels::words_per_row(in_features, bits);
  at::Tensor codes = at::empty({rows, words}, at::kInt);
  std::vector<uint8_t> values(in_features);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < in_features; ++i) values[i] = static_cast<uint8_t>((row * 7 + i * 5 + i / 3) % (1 << bits));
    kernels::pack_row(values.data(), in_features, bits,
                      reinterpret_cast<uint32_t*>(codes.data_ptr<int32_t>()) + row * words);
  }
  const at::Tensor scales = at::arange(1, rows * groups + 1, at::kFloat).reshape({rows, groups}) / 37;
  const at::Tensor offsets = at::arange(0, rows * groups, at::kFloat).reshape({rows, groups}) / -11;
  return make_packed_weight("random", codes, scales, offsets, in_features, group_size, bits);
}

TEST(PackedWeight, DequantisesAsTheDefinitionSays) {
  for (int bits : {2, 3, 4}) {
    for (int64_t in_features : {32, 96, 100}) {
      const PackedWeight weight = random_weight(bits, 65, in_features, 32);
      at::Tensor exact = at::empty({65, in_features}, at::kDouble);
      kernels::reference::dequantize(weight.view(), exact.data_ptr<double>());
      // One product and one sum in fp32: at most two half-ulps of values up to max|w|.
      const double largest = exact.abs().max().item<double>() + weight.scales.max().item<double>() * (1 << bits);
      EXPECT_LE(max_difference(weight.dequantize(at::kFloat), exact), largest * std::ldexp(1.0, -23))
          << bits << " bits, " << in_features;
      EXPECT_TRUE(at::equal(weight.dequantize(at::kBFloat16), weight.dequantize(at::kFloat).to(at::kBFloat16)));
    }
  }
}

at::Tensor exact_product(const PackedWeight& weight, const at::Tensor& x) {
  const at::Tensor xd = x.to(at::kDouble).contiguous(), y = at::empty({x.size(0), weight.out_features()}, at::kDouble);
  kernels::reference::matmul(weight.view(), xd.data_ptr<double>(), x.size(0), y.data_ptr<double>());
  return y;
}

// What fp32 may err by in each entry of x . W^T [tokens, out_features] f64: two roundings of each weight and one of its
// product, and one a step of the sum, all of sizes below |x| (|s c| + |b|).
at::Tensor product_bound(const PackedWeight& weight, const at::Tensor& x) {
  const auto spread = [&](const at::Tensor& groups) {
    return groups.to(at::kDouble).repeat_interleave(weight.group_size, 1).narrow(1, 0, weight.in_features);
  };
  at::Tensor exact = at::empty({weight.out_features(), weight.in_features}, at::kDouble);
  kernels::reference::dequantize(weight.view(), exact.data_ptr<double>());
  const at::Tensor offsets = spread(weight.offsets), sizes = (exact - offsets).abs() + offsets.abs();
  return x.abs().to(at::kDouble).matmul(sizes.t()) *
         (static_cast<double>(weight.in_features + 3) * std::ldexp(1.0, -24));
}

// How many entries lie outside the bound, as a part of all.
double outside(const at::Tensor& ours, const at::Tensor& exact, const at::Tensor& bound) {
  return (ours.to(at::kDouble) - exact).abs().gt(bound).to(at::kDouble).mean().item<double>();
}

TEST(PackedWeight, MultipliesFewAndManyTokensAlike) {
  for (int bits : {2, 3, 4}) {
    const PackedWeight weight = random_weight(bits, 33, 100, 32);
    PackedWeight shifted = weight, swapped = weight;
    shifted.offsets = weight.offsets + weight.scales * 0.05;  // a twentieth of a step
    swapped.scales = weight.scales.flip({1}).contiguous();    // another group's scale
    for (int64_t tokens : {1, 3, 4, 5, 20}) {                 // up to four are multiplied straight from the codes
      const at::Tensor x = tensor::RandomStream(1, "x").normal_tensor({tokens, 100}, 1);
      const at::Tensor bound = product_bound(weight, x), y = weight.multiply(x);
      EXPECT_EQ(y.scalar_type(), at::kFloat);
      EXPECT_EQ(outside(y, exact_product(weight, x), bound), 0) << bits << " bits, " << tokens << " tokens";
      EXPECT_GT(outside(y, exact_product(shifted, x), bound), 0.9) << bits << " bits, " << tokens << " tokens";
      EXPECT_GT(outside(y, exact_product(swapped, x), bound), 0.9) << bits << " bits, " << tokens << " tokens";
    }
  }
}

TEST(PackedWeight, InBfloat16TheOffsetsKeepTheirPrecision) {
  // A merge that moves offsets by a hundredth of a step: a bf16 weight of size 8 steps has a spacing of 2^-5 steps and
  // drowns it.
  for (int bits : {2, 3, 4}) {
    PackedWeight base = random_weight(bits, 48, 256, 32);
    base.offsets = base.scales * (-0.5 * std::ldexp(1.0, bits));
    PackedWeight merged = base;
    const at::Tensor change =
        base.scales * 0.01 * tensor::RandomStream(2, "change").normal_tensor(base.offsets.sizes(), 1);
    merged.offsets = base.offsets + change;
    const at::Tensor x = tensor::RandomStream(3, "x").normal_tensor({24, 256}, 1).to(at::kBFloat16);
    const at::Tensor wanted = pool_sums(x, 32).to(at::kDouble).matmul(change.to(at::kDouble).t());
    const auto loss = [&](const at::Tensor& before, const at::Tensor& after) {
      return ((after.to(at::kDouble) - before.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
    };
    // Both share the codes' product to the bit; what differs are f32 sums of size |y|: about 2^-24 |y| / |change|, far
    // below 1e-3.
    EXPECT_LE(loss(base.multiply(x), merged.multiply(x)), 1e-3) << bits;
    // Must differ: one bf16 matrix for codes and offsets together.
    const auto rounded = [&](const PackedWeight& weight) {
      return x.to(at::kFloat).matmul(weight.dequantize(at::kBFloat16).to(at::kFloat).t());
    };
    EXPECT_GT(loss(rounded(base), rounded(merged)), 0.1) << bits;
    // And the product itself is as near as bf16 weights and outputs allow: 2^-9 each of the codes' part.
    const at::Tensor exact = exact_product(merged, x);
    EXPECT_LE(((merged.multiply(x).to(at::kDouble) - exact).norm() / exact.norm()).item<double>(), std::ldexp(1.0, -8))
        << bits;
  }
}

TEST(PoolSums, AgreeWithTheDoubleReferenceAlsoInAShorterLastGroup) {
  for (const auto& [in_features, group_size] :
       {std::pair<int64_t, int64_t>{64, 32}, {65, 32}, {100, 64}, {7, 32}, {257, 128}, {40, 5}}) {
    const at::Tensor x = tensor::RandomStream(4, "x").normal_tensor({3, in_features}, 1), xd = x.to(at::kDouble);
    const int64_t groups = kernels::groups_per_row(in_features, group_size);
    const at::Tensor exact = at::empty({3, groups}, at::kDouble);
    kernels::reference::pool(xd.data_ptr<double>(), 3, in_features, group_size, kernels::reference::Pooling::kSum,
                             exact.data_ptr<double>());
    // A sum of n numbers takes at most n - 1 roundings, each of at most 2^-24 of the sum of their sizes; the last group
    // may be shorter.
    at::Tensor sizes = at::empty({3, groups}, at::kDouble);
    const at::Tensor xa = xd.abs();
    kernels::reference::pool(xa.data_ptr<double>(), 3, in_features, group_size, kernels::reference::Pooling::kSum,
                             sizes.data_ptr<double>());
    const at::Tensor bound = sizes * (static_cast<double>(group_size - 1) * std::ldexp(1.0, -24));
    EXPECT_EQ(outside(pool_sums(x, group_size), exact, bound), 0) << in_features;
    EXPECT_EQ(outside(pool_sums(x + 1e-2, group_size), exact, bound), 1) << in_features;
    if (groups == 1) continue;
    EXPECT_EQ(outside(pool_sums(x.roll(1, 1), group_size), exact, bound), 1)
        << in_features;  // groups that begin one late
  }
}

TEST(PackedWeight, AWholeRowIsOneGroup) {
  const PackedWeight weight =
      make_packed_weight("m", at::zeros({2, 5}, at::kInt), at::ones({2, 1}), at::ones({2, 1}), 40, kWholeRow, 4);
  EXPECT_EQ(weight.group_size, 40);
  EXPECT_EQ(weight.groups(), 1);
  EXPECT_EQ(weight.bytes(), 2u * 5 * 4 + 2 * 2 * 4);
}

TEST(PackedWeight, RefusesWhatDoesNotFit) {
  const at::Tensor codes = at::zeros({2, 8}, at::kInt), ones = at::ones({2, 2});
  make_packed_weight("m", codes, ones, ones, 64, 32, 4);
  expect_refused("7 bits", codes, ones, ones, 64, 32, 7);
  expect_refused("group_size is 0", codes, ones, ones, 64, 0, 4);
  expect_refused("expected 6 words", codes, ones, ones, 64, 32, 3);
  expect_refused("scales have shape [2, 2], expected [2, 4]", codes, ones, ones, 64, 16, 4);
  expect_refused("offsets have shape [2, 1]", codes, ones, at::ones({2, 1}), 64, 32, 4);
  expect_refused("scales are Int", codes, ones.to(at::kInt), ones, 64, 32, 4);
  expect_refused("codes are Float", codes.to(at::kFloat), ones, ones, 64, 32, 4);
  at::Tensor bad = ones.clone();
  bad[1][0] = std::numeric_limits<float>::infinity();
  expect_refused("offsets of row 1, group 0 is not finite", codes, ones, bad, 64, 32, 4);
}

TEST(PackedWeight, WidensHalfPrecision) {
  const at::Tensor codes = at::zeros({2, 8}, at::kInt), halves = at::full({2, 2}, 0.5, at::kHalf);
  const PackedWeight weight = make_packed_weight("m", codes, halves, halves.to(at::kBFloat16), 64, 32, 4);
  EXPECT_EQ(weight.scales.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(weight.dequantize(at::kFloat), at::full({2, 64}, 0.5)));
}

TEST(PackedWeight, ReadsMlxMatrices) {
  REQUIRE_SHARED("goldens/mlx/matrices.safetensors");
  const io::SafetensorsFile file(test::shared_dir() / "goldens/mlx/matrices.safetensors");
  int cases = 0;
  for (const auto& [name, info] : file.tensors()) {
    if (!name.ends_with(".packed")) continue;
    const std::string prefix = name.substr(0, name.size() - 7);
    int bits = 0, group_size = 0;
    ASSERT_EQ(std::sscanf(prefix.c_str(), "w%dg%d", &bits, &group_size), 2) << name;
    const PackedWeight weight =
        make_packed_weight(prefix, file.read(name), file.read(prefix + ".scales"), file.read(prefix + ".biases"),
                           file.read("weight").size(1), group_size, bits);
    const at::Tensor expected = file.read(prefix + ".dequantised");
    // The goldens' README: one product and one sum in fp32; f16 and bf16 cases were rounded to that type by MLX.
    const double tolerance = prefix.ends_with("bfloat16")  ? std::ldexp(1.0, -6)
                             : prefix.ends_with("float16") ? std::ldexp(1.0, -9)
                                                           : std::ldexp(1.0, -22);
    const double largest = expected.abs().max().item<double>();
    EXPECT_LE(max_difference(weight.dequantize(at::kFloat), expected), tolerance * largest) << prefix;
    PackedWeight shifted = weight;
    shifted.offsets = weight.offsets + weight.scales.abs().max();
    EXPECT_GT(max_difference(shifted.dequantize(at::kFloat), expected), tolerance * largest) << prefix;
    ++cases;
  }
  EXPECT_GE(cases, 9);
}

TEST(PackedWeight, PacksTheCodesThatMlxPacked) {
  REQUIRE_SHARED("goldens/mlx/matrices.safetensors");
  const io::SafetensorsFile file(test::shared_dir() / "goldens/mlx/matrices.safetensors");
  for (const auto& [prefix, bits] : std::map<std::string, int>{{"w2g32", 2}, {"w3g32", 3}, {"w4g32", 4}}) {
    const at::Tensor expected = file.read(prefix + ".packed"),
                     dense = file.read(prefix + ".dequantised").to(at::kDouble);
    const int64_t rows = dense.size(0), columns = dense.size(1);
    const at::Tensor scales = file.read(prefix + ".scales").to(at::kDouble).repeat_interleave(32, 1);
    const at::Tensor biases = file.read(prefix + ".biases").to(at::kDouble).repeat_interleave(32, 1);
    // Codes recovered from the values that MLX itself computed, then packed by us.
    const at::Tensor codes = ((dense - biases) / scales).nan_to_num(0).round().to(at::kByte).contiguous();
    at::Tensor packed = at::empty_like(expected);
    for (int64_t row = 0; row < rows; ++row) {
      kernels::pack_row(codes.data_ptr<uint8_t>() + row * columns, columns, bits,
                        reinterpret_cast<uint32_t*>(packed.data_ptr<int32_t>()) + row * expected.size(1));
    }
    EXPECT_TRUE(at::equal(packed, expected)) << prefix;
  }
}

}  // namespace
}  // namespace qalora::quant
