#include "qalora/quant/adapter.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "qalora/core/error.h"

namespace qalora::quant {
namespace {

io::AdapterConfig config() {
  io::AdapterConfig config;
  config.rank = 16;
  return config;
}

const std::vector<LinearShape> kShapes = {{"model.layers.0.self_attn.q_proj", 64, 256, 8},
                                          {"model.layers.0.mlp.down_proj", 64, 4096, 128}};

TEST(NewAdapter, AFillsXaviersRangeAndBIsZero) {
  const io::AdapterFile adapter = new_adapter(config(), kShapes, 1);
  ASSERT_EQ(adapter.modules.size(), 2u);
  for (const auto& shape : kShapes) {
    const auto& weights = adapter.modules.at(shape.module);
    EXPECT_EQ(weights.a.sizes(), at::IntArrayRef({16, shape.adapter_inputs}));
    EXPECT_EQ(weights.b.sizes(), at::IntArrayRef({shape.out_features, 16}));
    EXPECT_EQ(weights.b.count_nonzero().item<int64_t>(), 0);
    const double bound = std::sqrt(6.0 / static_cast<double>(shape.adapter_inputs + 16));
    const double largest = weights.a.abs().max().item<double>();
    EXPECT_LE(largest, bound * (1 + 1e-6));  // the bound itself rounded to fp32
    EXPECT_GT(largest, bound * 0.9);         // of 128 or more uniform numbers one is that large, all but once in 10^5
  }
}

TEST(NewAdapter, DependsOnSeedAndModuleOnly) {
  const auto first = new_adapter(config(), kShapes, 1), again = new_adapter(config(), {kShapes[1], kShapes[0]}, 1);
  const auto other = new_adapter(config(), kShapes, 2);
  const std::string module = kShapes[0].module;
  EXPECT_TRUE(at::equal(first.modules.at(module).a, again.modules.at(module).a));
  EXPECT_FALSE(at::equal(first.modules.at(module).a, other.modules.at(module).a));
  const auto twins = new_adapter(config(), {{"a", 8, 64, 8}, {"b", 8, 64, 8}}, 1);
  EXPECT_FALSE(at::equal(twins.modules.at("a").a, twins.modules.at("b").a));
  EXPECT_THROW(new_adapter(config(), {{"a", 8, 64, 8}, {"a", 8, 64, 8}}, 1), InternalError);
}

}  // namespace
}  // namespace qalora::quant
