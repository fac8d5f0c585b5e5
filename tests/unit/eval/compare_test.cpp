#include "qalora/eval/compare.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/eval/scorer.h"
#include "unit/eval/tiny.h"

namespace qalora::eval {
namespace {

using test::random_ids;
using test::tiny_config;

TokenBlocks some_blocks() {
  TokenBlocks out;
  for (uint64_t i = 0; i < 5; ++i) out.blocks.push_back(random_ids(i, 20 + 9 * static_cast<int64_t>(i)));
  return out;
}

TEST(Compare, AModelWithItself) {
  model::Llama model = model::new_model(tiny_config(), 1), same = model::new_model(tiny_config(), 1);
  const auto result = compare_models(model, same, some_blocks(), 64);
  EXPECT_EQ(result.kl_mean, 0);
  EXPECT_EQ(result.kl_max, 0);
  EXPECT_EQ(result.top1_agreement, 1);
  EXPECT_EQ(result.max_logit_difference, 0);
  EXPECT_EQ(result.nll, result.other_nll);
  EXPECT_EQ(result.tokens, 5 * 19 + 9 * (1 + 2 + 3 + 4));
}

TEST(Compare, TwoModelsByAPlainLoop) {
  model::Llama model = model::new_model(tiny_config(), 1), other = model::new_model(tiny_config(), 2);
  const TokenBlocks blocks = some_blocks();
  const auto result = compare_models(model, other, blocks, 64);
  at::NoGradGuard no_grad;
  double kl_sum = 0, kl_max = 0, nll = 0, difference = 0;
  int64_t agree = 0, tokens = 0;
  for (const auto& ids : blocks.blocks) {
    model::KvCache first, second;
    const at::Tensor input = at::tensor(at::IntArrayRef(ids), at::kLong);
    const at::Tensor p = model.logits(model.forward_cached(input, first)).to(at::kDouble);
    const at::Tensor q = other.logits(other.forward_cached(input, second)).to(at::kDouble);
    for (size_t t = 0; t + 1 < ids.size(); ++t, ++tokens) {
      const double* a = p.data_ptr<double>() + static_cast<int64_t>(t) * p.size(1);
      const double* b = q.data_ptr<double>() + static_cast<int64_t>(t) * q.size(1);
      double za = 0, zb = 0, kl = 0;
      for (int64_t v = 0; v < p.size(1); ++v) za += std::exp(a[v]), zb += std::exp(b[v]);
      for (int64_t v = 0; v < p.size(1); ++v) {
        kl += std::exp(a[v]) / za * (a[v] - std::log(za) - b[v] + std::log(zb));
        difference = std::max(difference, std::abs(a[v] - b[v]));
      }
      kl_sum += kl;
      kl_max = std::max(kl_max, kl);
      nll += std::log(za) - a[ids[t + 1]];
      agree += std::max_element(a, a + p.size(1)) - a == std::max_element(b, b + p.size(1)) - b;
    }
  }
  // f32 logits of size 10 or so: 1e-5 each.
  EXPECT_NEAR(result.kl_mean, kl_sum / static_cast<double>(tokens), 1e-4);
  EXPECT_NEAR(result.kl_max, kl_max, 1e-3);
  EXPECT_NEAR(result.nll, nll / static_cast<double>(tokens), 1e-5);
  EXPECT_NEAR(result.max_logit_difference, difference, 1e-4);
  EXPECT_EQ(result.top1_agreement, static_cast<double>(agree) / static_cast<double>(tokens));
  EXPECT_GT(result.kl_mean, 0.1);
  // KL is not symmetric: the direction is that of the documentation.
  EXPECT_GT(std::abs(compare_models(other, model, blocks, 64).kl_mean - result.kl_mean), 1e-3);
}

TEST(Compare, VocabulariesMustHaveOneSize) {
  model::Llama model = model::new_model(tiny_config(), 1), other = model::new_model(tiny_config(128, 98), 1);
  try {
    compare_models(model, other, some_blocks(), 64);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("97"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("98"), std::string::npos);
  }
}

}  // namespace
}  // namespace qalora::eval
