#include "qalora/model/merge_checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/quant/merge.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::model {
namespace {

using test::expect_part;
using test::TempDir;

class MergeCheckpoint : public ::testing::Test {
 protected:
  MergeCheckpoint() {
    test::write_random_dense(dir_ / "dense");
    test::quantize_to(dir_ / "dense", base_, 4, 32);
  }

  // What check_mergeable says about this adapter, or "" when it is fine.
  template <typename E>
  std::string refusal(const fs::path& base, const io::AdapterFile& adapter, bool accept_unknown = false) {
    test::write_adapter_to(dir_ / "adapter", adapter);
    try {
      check_mergeable(io::Checkpoint(base), dir_ / "adapter", adapter, accept_unknown);
    } catch (const E& error) {
      return error.what();
    }
    return "";
  }

  io::AdapterFile adapter() const { return test::random_adapter(base_, io::Pooling::kSum, 0.01); }

  TempDir dir_;
  fs::path base_ = dir_ / "int4";
};

TEST_F(MergeCheckpoint, ChangesOffsetsAndNothingElse) {
  io::AdapterFile some = adapter();
  const std::string untouched = "model.layers.0.mlp.down_proj";
  some.modules.erase(untouched);
  test::write_adapter_to(dir_ / "adapter", some);
  const io::Checkpoint base(base_);
  fs::create_directories(dir_ / "merged");
  EXPECT_EQ(merge_checkpoint(base, dir_ / "adapter", some, dir_ / "merged"), 13);
  const io::Checkpoint merged(dir_ / "merged");
  const ByteChanges changes = compare_bytes(base, merged);
  EXPECT_EQ(changes.codes, 0u);
  EXPECT_EQ(changes.scales, 0u);
  EXPECT_EQ(changes.others, 0u);
  EXPECT_GT(changes.offsets, 1000u);
  EXPECT_EQ(merged.total_bytes(), merged_bytes(base, some));
  EXPECT_TRUE(std::ranges::equal(base.bytes(untouched + ".biases").span, merged.bytes(untouched + ".biases").span));

  const std::string module = "model.layers.1.self_attn.k_proj";
  const auto weight = read_packed(base, module, 32, 64, *read_config(base_).quantization);
  const auto expected = quant::merge(module, weight, some.config, some.modules.at(module));
  EXPECT_TRUE(at::equal(merged.read(module + ".biases"), expected.offsets));
  EXPECT_FALSE(at::equal(merged.read(module + ".biases"), weight.offsets));
  EXPECT_NO_THROW(load_model(dir_ / "merged", {}));
  EXPECT_EQ(io::base_fingerprint(merged), io::base_fingerprint(base));
}

TEST_F(MergeCheckpoint, CompareBytesSeesEveryKindOfChange) {
  const auto changed = [&](const std::string& name) {
    TempDir other;
    std::map<std::string, at::Tensor> tensors;
    const io::SafetensorsFile file(base_ / "model.safetensors");
    for (const auto& [key, info] : file.tensors()) tensors[key] = file.read(key);
    tensors.at(name).flatten()[0] += 1;
    io::write_safetensors(other / "model.safetensors", tensors);
    return compare_bytes(io::Checkpoint(base_), io::Checkpoint(other.path()));
  };
  const std::string module = "model.layers.0.mlp.up_proj";
  EXPECT_GT(changed(module + ".weight").codes, 0u);
  EXPECT_GT(changed(module + ".scales").scales, 0u);
  EXPECT_GT(changed(module + ".biases").offsets, 0u);
  EXPECT_GT(changed("model.norm.weight").others, 0u);
  EXPECT_EQ(changed("model.norm.weight").codes, 0u);
}

TEST_F(MergeCheckpoint, AcceptsItsOwnAdapter) { EXPECT_EQ(refusal<Error>(base_, adapter()), ""); }

TEST_F(MergeCheckpoint, RefusesADenseBase) {
  expect_part(refusal<UserError>(dir_ / "dense", adapter()), "a dense model");
}

TEST_F(MergeCheckpoint, RefusesAnOrdinaryLora) {
  io::AdapterFile lora = adapter();
  lora.config.pooling = io::Pooling::kNone;
  lora.config.group_size = 0;
  expect_part(refusal<DataError>(base_, lora), "ordinary LoRA");
  expect_part(refusal<DataError>(base_, lora), "--adapter");
}

TEST_F(MergeCheckpoint, RefusesAnotherBase) {
  test::write_random_dense(dir_ / "other_dense", test::random_config_json(), /*seed=*/6);
  test::quantize_to(dir_ / "other_dense", dir_ / "other", 4, 32);
  const std::string text = refusal<DataError>(dir_ / "other", adapter());
  expect_part(text, "trained on another base");
  expect_part(text, adapter().config.base_fingerprint.substr(0, 16));
}

TEST_F(MergeCheckpoint, RefusesAnotherGroupSize) {
  io::AdapterFile other = adapter();
  other.config.group_size = 64;
  expect_part(refusal<DataError>(base_, other), "group_size 64 does not match the model's 32");
}

TEST_F(MergeCheckpoint, RefusesModulesThatDoNotFit) {
  io::AdapterFile other = adapter();
  other.modules["model.layers.7.mlp.up_proj"] = other.modules.begin()->second;
  expect_part(refusal<DataError>(base_, other), "'model.layers.7.mlp.up_proj' is not a linear layer");
  other = adapter();
  other.modules.at("model.layers.0.mlp.up_proj").b = at::ones({159, 4});
  expect_part(refusal<DataError>(base_, other), "lora_B has 159 rows, the model's layer 160");
}

TEST_F(MergeCheckpoint, RefusesToMergeTheSameAdapterTwice) {
  const io::AdapterFile own = adapter();
  test::write_adapter_to(dir_ / "adapter", own);
  fs::create_directories(dir_ / "merged");
  merge_checkpoint(io::Checkpoint(base_), dir_ / "adapter", own, dir_ / "merged");
  expect_part(refusal<UserError>(dir_ / "merged", own), "contains the adapter");
  EXPECT_EQ(
      refusal<Error>(dir_ / "merged", test::random_adapter(dir_ / "merged", io::Pooling::kSum, 0.01, /*seed=*/12)), "");
  fs::create_directories(dir_ / "adapter");
  test::write_adapter_to(dir_ / "adapter", own);
  expect_part(test::refusal<UserError>([&] { load_model_with_adapter(dir_ / "merged", dir_ / "adapter", {}); }),
              "contains the adapter");
  EXPECT_NO_THROW(load_model_with_adapter(base_, dir_ / "adapter", {}));
}

// Codes and scales are those of the base, but not what the adapter was trained beside.
TEST_F(MergeCheckpoint, RefusesAnotherStateOfTheSameBase) {
  const io::AdapterFile own = adapter();
  test::write_adapter_to(dir_ / "adapter", own);
  fs::create_directories(dir_ / "merged");
  merge_checkpoint(io::Checkpoint(base_), dir_ / "adapter", own, dir_ / "merged");
  const io::AdapterFile second = test::random_adapter(dir_ / "merged", io::Pooling::kSum, 0.01, /*seed=*/12);
  expect_part(refusal<DataError>(base_, second),
              "another state of this base");  // merging here would drop the first adapter
  expect_part(test::refusal<DataError>([&] { load_model_with_adapter(base_, dir_ / "adapter", {}); }),
              "another state of this base");
  EXPECT_EQ(refusal<Error>(dir_ / "merged", second), "");

  const std::string offsets = "model.layers.0.mlp.up_proj.biases";
  for (const std::string& name :
       {offsets, std::string("model.embed_tokens.weight"), std::string("model.norm.weight")}) {
    fs::remove_all(dir_ / "changed");
    fs::copy(base_, dir_ / "changed");
    const at::Tensor value = io::Checkpoint(base_).read(name);
    test::rewrite(dir_ / "changed", name, value);
    EXPECT_EQ(refusal<Error>(dir_ / "changed", own), "") << name;  // written anew, in another order
    test::rewrite(dir_ / "changed", name, value * 1.5);
    expect_part(refusal<DataError>(dir_ / "changed", own), "another state of this base");
  }
}

TEST_F(MergeCheckpoint, AnAdapterThatDoesNotNameItsBaseNeedsAWord) {
  io::AdapterFile unknown = adapter();
  unknown.config.base_state_fingerprint = "";
  EXPECT_EQ(refusal<Error>(base_, unknown), "");  // a warning: another program wrote it
  unknown.config.base_fingerprint = "";
  expect_part(refusal<DataError>(base_, unknown), "--accept-unknown-base");
  EXPECT_EQ(refusal<Error>(base_, unknown, /*accept_unknown=*/true), "");
}

}  // namespace
}  // namespace qalora::model
