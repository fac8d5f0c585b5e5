#include "qalora/quant/merge.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "qalora/core/error.h"
#include "qalora/kernels/reference.h"
#include "qalora/quant/round_to_nearest.h"
#include "qalora/tensor/random.h"

namespace qalora::quant {
namespace {

constexpr int64_t kRows = 24, kTokens = 6, kRank = 4;

struct Case {
  PackedWeight base;
  io::AdapterConfig config;
  io::AdapterWeights adapter;
  at::Tensor x;  // [tokens, in_features] f64
};

Case make_case(io::Pooling pooling, int64_t in_features, int64_t group_size, int bits = 4) {
  tensor::RandomStream stream(3, "merge test");
  Case c;
  c.base = round_to_nearest("w", stream.normal_tensor({kRows, in_features}, 0.02), bits, group_size).weight;
  c.config.rank = kRank;
  c.config.alpha = 2 * kRank;
  c.config.scaling = 2;
  c.config.pooling = pooling;
  c.config.group_size = group_size;
  c.adapter.a = stream.normal_tensor({kRank, c.base.groups()}, 0.1);
  c.adapter.b = stream.normal_tensor({kRows, kRank}, 0.02);
  c.x = stream.normal_tensor({kTokens, in_features}, 1).to(at::kDouble);
  return c;
}

// x . W^T in double loops -> [tokens, rows] f64
at::Tensor product(const PackedWeight& weight, const at::Tensor& x) {
  at::Tensor y = at::empty({x.size(0), weight.out_features()}, at::kDouble);
  kernels::reference::matmul(weight.view(), x.data_ptr<double>(), x.size(0), y.data_ptr<double>());
  return y;
}

// base + scaling * pool(x) . A^T . B^T in double loops
at::Tensor adapted(const Case& c) {
  at::Tensor pooled = at::empty({kTokens, c.base.groups()}, at::kDouble);
  const auto pooling =
      c.config.pooling == io::Pooling::kSum ? kernels::reference::Pooling::kSum : kernels::reference::Pooling::kMean;
  kernels::reference::pool(c.x.data_ptr<double>(), kTokens, c.base.in_features, c.base.group_size, pooling,
                           pooled.data_ptr<double>());
  at::Tensor y = product(c.base, c.x);
  for (int64_t token = 0; token < kTokens; ++token) {
    for (int64_t row = 0; row < kRows; ++row) {
      double sum = 0;
      for (int64_t k = 0; k < kRank; ++k) {
        double inner = 0;
        for (int64_t group = 0; group < c.base.groups(); ++group) {
          inner += pooled[token][group].item<double>() * c.adapter.a[k][group].item<double>();
        }
        sum += inner * c.adapter.b[row][k].item<double>();
      }
      y[token][row] += c.config.scaling * sum;
    }
  }
  return y;
}

double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

// Offsets are rounded to fp32 once: each group moves a product by at most half an ulp of its offset times its sum of
// |x|.
double tolerance(const PackedWeight& merged, const at::Tensor& x) {
  const double largest_offset = merged.offsets.abs().max().item<double>();
  return std::ldexp(1.0, -24) * largest_offset * x.abs().sum(1).max().item<double>();
}

PackedWeight with_offsets(const PackedWeight& base, const at::Tensor& offsets) {
  PackedWeight changed = base;
  changed.offsets = offsets.to(at::kFloat).contiguous();
  return changed;
}

TEST(Merge, EqualsTheAdapterModelAndNothingElseDoes) {
  for (const auto pooling : {io::Pooling::kSum, io::Pooling::kMean}) {
    for (const int64_t in_features : {96, 80}) {  // whole groups; a shorter last one
      for (const int64_t group_size : {int64_t{32}, kWholeRow}) {
        Case c = make_case(pooling, in_features, group_size);
        const at::Tensor expected = adapted(c);
        const PackedWeight merged = merge("w", c.base, c.config, c.adapter);
        const double bound = tolerance(merged, c.x);
        EXPECT_LE(distance(product(merged, c.x), expected), bound);

        const at::Tensor change = offset_change("w", c.config, c.adapter, in_features, c.base.group_size);
        const auto wrong = [&](const char* what, const at::Tensor& offsets) {
          EXPECT_GT(distance(product(with_offsets(c.base, offsets), c.x), expected), 5 * bound) << what;
        };
        wrong("nothing merged", c.base.offsets);
        wrong("wrong sign", c.base.offsets - change);
        wrong("offsets in bf16", merged.offsets.to(at::kBFloat16));
        wrong("offsets in f16", merged.offsets.to(at::kHalf));
        io::AdapterConfig other = c.config;
        other.pooling = pooling == io::Pooling::kSum ? io::Pooling::kMean : io::Pooling::kSum;
        wrong("the other pooling", merge("w", c.base, other, c.adapter).offsets);
        if (in_features % c.base.group_size != 0 && pooling == io::Pooling::kMean) {
          const at::Tensor sum = offset_change("w", other, c.adapter, in_features, c.base.group_size);
          wrong("the last group divided by a whole one's length",
                c.base.offsets + sum / static_cast<double>(c.base.group_size));
        }
      }
    }
  }
}

TEST(Merge, CodesAndScalesAreTheSameMemory) {
  const Case c = make_case(io::Pooling::kSum, 96, 32);
  const PackedWeight merged = merge("w", c.base, c.config, c.adapter);
  EXPECT_TRUE(merged.codes.is_same(c.base.codes));
  EXPECT_TRUE(merged.scales.is_same(c.base.scales));
  EXPECT_FALSE(at::equal(merged.offsets, c.base.offsets));
  EXPECT_EQ(merged.offsets.scalar_type(), at::kFloat);
}

TEST(Merge, AZeroAdapterChangesNothing) {
  Case c = make_case(io::Pooling::kMean, 96, 32);
  c.adapter.b.zero_();
  EXPECT_TRUE(at::equal(merge("w", c.base, c.config, c.adapter).offsets, c.base.offsets));
}

TEST(Merge, RefusesWhatDoesNotBelongToThisBase) {
  const auto refused = [](const Case& c, const std::string& part) {
    try {
      merge("file: module 'm'", c.base, c.config, c.adapter);
      FAIL() << "accepted; expected: " << part;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_TRUE(std::string(error.what()).starts_with("file: module 'm'")) << error.what();
    }
  };
  const Case good = make_case(io::Pooling::kSum, 96, 32);
  Case c = good;
  c.config.pooling = io::Pooling::kNone;
  refused(c, "ordinary LoRA");
  c = good;
  c.config.group_size = 64;
  refused(c, "groups of 64 inputs, the base is quantised in groups of 32");
  c = good;
  c.adapter.a = at::ones({kRank, 4});
  refused(c, "lora_A has shape [4, 4], expected 3 columns");
  c = good;
  c.adapter.b = at::ones({kRows, kRank + 1});
  refused(c, "ranks differ");
  c = good;
  c.adapter.b = at::ones({kRows + 1, kRank});
  refused(c, "lora_B has 25 rows, the base 24");
  c = good;
  c.adapter.b = at::full({kRows, kRank}, 3e38);
  c.adapter.a = at::full({kRank, 3}, 3e38);
  refused(c, "not finite");
}

}  // namespace
}  // namespace qalora::quant
