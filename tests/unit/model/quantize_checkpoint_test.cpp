#include "qalora/model/quantize_checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "qalora/core/error.h"
#include "qalora/core/signals.h"
#include "qalora/quant/round_to_nearest.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::model {
namespace {

using test::expect_part;
using test::refusal;
using test::rewrite;
using test::TempDir;

TEST(QuantizeCheckpoint, PacksTheLinearsAndCopiesTheRestByteForByte) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::write_file(dir / "dense/tokenizer_config.json", "{}");
  const auto layers = test::quantize_to(dir / "dense", dir / "int4", 4, 32);
  const io::Checkpoint dense(dir / "dense"), packed(dir / "int4");
  EXPECT_EQ(layers.size(), 14u);
  for (const auto& tensor : expected_tensors(read_config(dir / "dense"))) {
    if (!tensor.linear) {
      EXPECT_TRUE(std::ranges::equal(dense.bytes(tensor.name).span, packed.bytes(tensor.name).span)) << tensor.name;
      continue;
    }
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    const auto expected = quant::round_to_nearest(tensor.name, dense.read(tensor.name), 4, 32);
    EXPECT_TRUE(at::equal(packed.read(tensor.name), expected.weight.codes)) << module;
    EXPECT_TRUE(at::equal(packed.read(module + ".scales"), expected.weight.scales)) << module;
    EXPECT_TRUE(at::equal(packed.read(module + ".biases"), expected.weight.offsets)) << module;
    EXPECT_EQ(packed.info(module + ".biases").dtype, io::Dtype::kF32);
  }
  EXPECT_TRUE(fs::exists(dir / "int4/tokenizer_config.json"));
  const LlamaConfig config = read_config(dir / "int4");
  ASSERT_TRUE(config.quantization.has_value());
  EXPECT_EQ(config.quantization->bits, 4);
  EXPECT_EQ(config.quantization->group_size, 32);
  EXPECT_NO_THROW(load_model(dir / "int4", {}));
}

TEST(QuantizeCheckpoint, ThePlanTellsTheSizes) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  const io::Checkpoint checkpoint(dir / "dense");
  const QuantizePlan plan = plan_quantization(checkpoint, {4, 32});
  EXPECT_EQ(plan.linears, 14);
  EXPECT_DOUBLE_EQ(plan.bits_per_weight, 4 + 64.0 / 32);  // a scale and an offset of 32 bits each for 32 weights
  EXPECT_TRUE(plan.notes.empty());
  quantize_checkpoint(checkpoint, plan, dir / "int4", false);
  EXPECT_EQ(io::Checkpoint(dir / "int4").total_bytes(), plan.output_bytes);
  EXPECT_GT(plan.peak_bytes, 0u);
}

TEST(QuantizeCheckpoint, SaysWhatBecomesOfTheLastGroupAndWhatMlxCannotRead) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  const io::Checkpoint checkpoint(dir / "dense");
  const auto notes = [&](int64_t group_size) { return plan_quantization(checkpoint, {4, group_size}).notes; };
  ASSERT_EQ(notes(64).size(), 2u);  // 160 inputs
  expect_part(notes(64)[0], "does not divide 160 inputs: the last group of these rows has 32");
  expect_part(notes(64)[1], "MLX cannot read");
  ASSERT_EQ(notes(quant::kWholeRow).size(), 1u);
  for (const int64_t group_size : {int64_t{64}, quant::kWholeRow}) {
    const fs::path out = dir / ("out" + std::to_string(group_size));
    test::quantize_to(dir / "dense", out, 3, group_size);
    EXPECT_NO_THROW(load_model(out, {}));
  }
}

TEST(QuantizeCheckpoint, RefusesAQuantisedModel) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::quantize_to(dir / "dense", dir / "int4", 4, 32);
  const std::string text = refusal<UserError>([&] { test::quantize_to(dir / "int4", dir / "again", 4, 32); });
  expect_part(text, "quantised already (4 bits, group size 32)");
  EXPECT_FALSE(fs::exists(dir / "again"));
}

TEST(QuantizeCheckpoint, RefusesDamagedModelsAndLeavesNothing) {
  const std::string weight = "model.layers.1.mlp.up_proj.weight";
  const auto why = [&](const std::string& name, const at::Tensor& value) {
    TempDir dir;
    test::write_random_dense(dir / "dense");
    rewrite(dir / "dense", name, value);
    const std::string text = refusal<DataError>([&] { test::quantize_to(dir / "dense", dir / "out", 4, 32); });
    EXPECT_FALSE(fs::exists(dir / "out"));
    EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1)
        << "something was left behind";
    return text;
  };
  at::Tensor bad = at::zeros({160, 64}, at::kHalf);
  bad[3][5] = std::numeric_limits<float>::quiet_NaN();
  expect_part(why(weight, bad), weight + "': the weight at row 3, column 5 is nan");
  expect_part(why(weight, at::Tensor()), "no tensor '" + weight + "'");
  expect_part(why(weight, at::zeros({160, 65}, at::kHalf)), "has shape [160, 65], config.json asks for [160, 64]");
  expect_part(why(weight, at::zeros({160, 64}, at::kInt)), "is I32");
  expect_part(why("model.layers.9.extra.weight", at::zeros({2})),
              "'model.layers.9.extra.weight' is not part of a llama model");
  const at::Tensor infinite = at::full({64}, std::numeric_limits<float>::infinity(), at::kHalf);
  expect_part(why("model.norm.weight", infinite), "'model.norm.weight' holds values");
}

TEST(QuantizeCheckpoint, AnExistingOutputStaysUnlessReplaced) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::write_file(dir / "out/keep", "me");
  refusal<UserError>([&] { test::quantize_to(dir / "dense", dir / "out", 4, 32); });
  EXPECT_EQ(test::read_file(dir / "out/keep"), "me");
  const io::Checkpoint checkpoint(dir / "dense");
  quantize_checkpoint(checkpoint, plan_quantization(checkpoint, {4, 32}), dir / "out", /*replace=*/true);
  EXPECT_FALSE(fs::exists(dir / "out/keep"));
  EXPECT_TRUE(fs::exists(dir / "out/model.safetensors"));
}

TEST(QuantizeCheckpoint, IsAFunctionOfItsInput) {
  TempDir dir;
  test::write_random_dense(dir / "dense");
  test::quantize_to(dir / "dense", dir / "one", 2, 32);
  test::quantize_to(dir / "dense", dir / "two", 2, 32);
  EXPECT_EQ(test::read_file(dir / "one/model.safetensors"), test::read_file(dir / "two/model.safetensors"));
  test::quantize_to(dir / "dense", dir / "three", 2, 64);
  EXPECT_NE(test::read_file(dir / "one/model.safetensors"), test::read_file(dir / "three/model.safetensors"));
}

TEST(QuantizeCheckpoint, CarriesATiedModelWithoutItsSpareHead) {
  TempDir dir;
  auto json = test::random_config_json();
  json["tie_word_embeddings"] = true;
  test::write_random_dense(dir / "dense", json);
  rewrite(dir / "dense", "lm_head.weight", at::zeros({400, 64}, at::kHalf));
  test::quantize_to(dir / "dense", dir / "out", 4, 32);
  EXPECT_FALSE(io::Checkpoint(dir / "out").contains("lm_head.weight"));
  EXPECT_NO_THROW(load_model(dir / "out", {}));
}

}  // namespace
}  // namespace qalora::model
