#include "qalora/io/adapter_file.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/checkpoint.h"
#include "support/support.h"

namespace qalora::io {
namespace {

using test::TempDir;
using Json = nlohmann::json;

const std::string kModule = "model.layers.0.self_attn.q_proj";

AdapterFile small_adapter() {
  AdapterFile adapter;
  adapter.config.rank = 2;
  adapter.config.alpha = 3;
  adapter.config.scaling = 1.5;
  adapter.config.dropout = 0.1;
  adapter.config.pooling = Pooling::kMean;
  adapter.config.group_size = 32;
  adapter.config.targets = {"q_proj"};
  adapter.config.base_fingerprint = std::string(64, 'a');
  adapter.config.base_state_fingerprint = std::string(64, 'b');
  adapter.config.base_model = "some/base";
  adapter.config.training_data = "data.json";
  adapter.modules[kModule] = {at::arange(0, 6, at::kFloat).reshape({2, 3}),
                              at::arange(0, 8, at::kFloat).reshape({4, 2}) / 3};
  return adapter;
}

template <typename E>
std::string refusal(const fs::path& folder) {
  try {
    read_adapter(folder);
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << folder << " was accepted";
  return "";
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

// The small adapter with some keys of its configuration replaced; null removes a key.
void write_changed(const fs::path& folder, const Json& changes) {
  write_adapter(folder, small_adapter());
  Json json = read_json_file(folder / "adapter_config.json");
  json.merge_patch(changes);
  write_json_file(folder / "adapter_config.json", json);
}

std::string refusal_of_change(const Json& changes) {
  TempDir dir;
  write_changed(dir.path(), changes);
  return refusal<DataError>(dir.path());
}

std::string refusal_of_tensors(const std::map<std::string, at::Tensor>& tensors) {
  TempDir dir;
  write_adapter(dir.path(), small_adapter());
  write_safetensors(dir / "adapter_model.safetensors", tensors);
  return refusal<DataError>(dir.path());
}

TEST(AdapterFile, ComesBackAsItWasByteForByte) {
  TempDir one, two;
  write_adapter(one.path(), small_adapter());
  const AdapterFile read = read_adapter(one.path());
  EXPECT_EQ(read.config.rank, 2);
  EXPECT_EQ(read.config.scaling, 1.5);
  EXPECT_EQ(read.config.pooling, Pooling::kMean);
  EXPECT_EQ(read.config.group_size, 32);
  EXPECT_EQ(read.config.training_data, "data.json");
  EXPECT_EQ(read.config.base_fingerprint, std::string(64, 'a'));
  EXPECT_EQ(read.config.base_state_fingerprint, std::string(64, 'b'));
  EXPECT_TRUE(at::equal(read.modules.at(kModule).b, small_adapter().modules.at(kModule).b));
  write_adapter(two.path(), read);
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    EXPECT_EQ(test::read_file(one / name), test::read_file(two / name)) << name;
  }
  AdapterFile other = small_adapter();
  other.config.pooling = Pooling::kSum;
  write_adapter(two.path(), other);
  EXPECT_NE(test::read_file(one / "adapter_config.json"), test::read_file(two / "adapter_config.json"));
}

TEST(AdapterFile, UsesPeftsNames) {
  TempDir dir;
  write_adapter(dir.path(), small_adapter());
  const SafetensorsFile file(dir / "adapter_model.safetensors");
  EXPECT_TRUE(file.contains("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"));
  EXPECT_TRUE(file.contains("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"));
  const Json json = read_json_file(dir / "adapter_config.json");
  EXPECT_EQ(json["peft_type"], "LORA");
  EXPECT_EQ(json["task_type"], "CAUSAL_LM");
  EXPECT_EQ(json["lora_alpha"].dump(), "3");
  EXPECT_EQ(json["qalora"]["pooling"], "mean");
}

TEST(AdapterFile, APlainPeftAdapterIsAnOrdinaryLora) {
  TempDir dir;
  write_changed(dir.path(), {{"qalora", nullptr}});
  const AdapterFile read = read_adapter(dir.path());
  EXPECT_EQ(read.config.pooling, Pooling::kNone);
  EXPECT_EQ(read.config.group_size, 0);
  EXPECT_DOUBLE_EQ(read.config.scaling, 1.5);
  EXPECT_EQ(read.config.base_fingerprint, "");
}

TEST(AdapterFile, RankStabilisedScalingDividesByTheRoot) {
  TempDir dir;
  write_changed(dir.path(), {{"qalora", nullptr}, {"use_rslora", true}});
  EXPECT_DOUBLE_EQ(read_adapter(dir.path()).config.scaling, 3 / std::sqrt(2.0));
}

TEST(AdapterFile, ReadsPeftsOwnFiles) {
  REQUIRE_SHARED("goldens/peft/lora");
  const AdapterFile lora = read_adapter(test::shared_dir() / "goldens/peft/lora");
  EXPECT_EQ(lora.config.rank, 8);
  EXPECT_DOUBLE_EQ(lora.config.scaling, 2.0);
  EXPECT_EQ(lora.modules.size(), 14u);
  EXPECT_EQ(lora.modules.at(kModule).a.sizes(), at::IntArrayRef({8, 64}));
  EXPECT_EQ(lora.config.origin, AdapterOrigin::kLora);
  EXPECT_FALSE(lora.modules.at(kModule).own_scaling.has_value());
}

// PEFT averages and multiplies by the number of groups: 64 / 32 in q_proj, 192 / 32 in down_proj.
TEST(AdapterFile, PeftsQaLoraHasAScalingForEveryWidth) {
  REQUIRE_SHARED("goldens/peft/qalora");
  const AdapterFile read = read_adapter(test::shared_dir() / "goldens/peft/qalora");
  EXPECT_EQ(read.config.origin, AdapterOrigin::kPeft);
  EXPECT_EQ(read.config.pooling, Pooling::kMean);
  EXPECT_EQ(read.config.group_size, 32);
  const auto scaling = [&](const std::string& module) { return read.modules.at(module).scaling(read.config); };
  EXPECT_DOUBLE_EQ(scaling(kModule), 2.0 * 2);
  EXPECT_DOUBLE_EQ(scaling("model.layers.1.mlp.down_proj"), 2.0 * 6);
  const AdapterFile some = read_adapter(test::shared_dir() / "goldens/peft/qalora_rslora_some");
  EXPECT_DOUBLE_EQ(some.modules.at("model.layers.0.mlp.down_proj").scaling(some.config), 8 / std::sqrt(4.0) * 6);
  // What is written back keeps each module's scaling, by our own rules.
  TempDir one, two;
  write_adapter(one.path(), read);
  const AdapterFile again = read_adapter(one.path());
  EXPECT_EQ(again.config.origin, AdapterOrigin::kOwn);
  for (const auto& [module, weights] : read.modules)
    EXPECT_EQ(again.modules.at(module).scaling(again.config), scaling(module)) << module;
  write_adapter(two.path(), again);
  EXPECT_EQ(test::read_file(one / "adapter_config.json"), test::read_file(two / "adapter_config.json"));
}

TEST(AdapterFile, PatternsGiveModulesTheirOwnRankAndAlpha) {
  TempDir dir;
  write_changed(dir.path(), {{"qalora", nullptr}, {"alpha_pattern", {{"q_proj", 8}}}});
  EXPECT_DOUBLE_EQ(read_adapter(dir.path()).modules.at(kModule).scaling(read_adapter(dir.path()).config), 4);
  write_changed(dir.path(), {{"qalora", nullptr}, {"alpha_pattern", {{"k_proj", 8}}}});
  EXPECT_FALSE(read_adapter(dir.path()).modules.at(kModule).own_scaling.has_value());
  write_changed(dir.path(),
                {{"qalora", nullptr}, {"r", 4}, {"rank_pattern", {{"layers\\.0\\.self_attn\\.[qk]_proj", 2}}}});
  EXPECT_DOUBLE_EQ(read_adapter(dir.path()).modules.at(kModule).scaling(read_adapter(dir.path()).config), 1.5);
  write_changed(dir.path(), {{"qalora", nullptr}, {"r", 4}, {"use_rslora", true}, {"rank_pattern", {{"q_proj", 2}}}});
  EXPECT_DOUBLE_EQ(read_adapter(dir.path()).modules.at(kModule).scaling(read_adapter(dir.path()).config),
                   3 / std::sqrt(2.0));
  // Must differ: a pattern that ends in the middle of a name, and two that disagree.
  expect_part(refusal_of_change({{"rank_pattern", {{"q_pro", 4}}}, {"r", 4}, {"lora_alpha", 6}}), "the rank is 4");
  expect_part(refusal_of_change({{"rank_pattern", {{"q_proj", 2}, {".*_proj", 4}}}}), "depends on their order");
  expect_part(refusal_of_change({{"rank_pattern", {{"q_proj", 0}}}}), "'q_proj' is 0");
  expect_part(refusal_of_change({{"rank_pattern", {{"(?!x)q_proj", 4}}}}), "regular expression");
}

TEST(AdapterFile, ARankStabilisedAdapterIsWrittenSoThatItReadsBack) {
  TempDir dir, out;
  write_changed(dir.path(), {{"qalora", nullptr}, {"use_rslora", true}});
  const AdapterFile read = read_adapter(dir.path());
  write_adapter(out.path(), read);
  EXPECT_EQ(read_adapter(out.path()).config.scaling, read.config.scaling);
}

TEST(AdapterFile, NumbersThatDoNotFitAreNotOthers) {
  const uint64_t large = 18446744073709551615u;  // as a signed number it would be -1: whole rows
  expect_part(refusal_of_change({{"qalora", {{"group_size", large}}}}),
              "'group_size' must be a whole number, got 18446744073709551615");
  expect_part(refusal_of_change({{"r", large}}), "'r' must be a whole number");
  expect_part(refusal_of_change({{"qalora", {{"group_size", -2}}}}), "'group_size' is -2");
  TempDir dir;
  write_changed(dir.path(), {{"qalora", {{"group_size", -1}}}});
  EXPECT_EQ(read_adapter(dir.path()).config.group_size, -1);
}

TEST(AdapterFile, PathsThatCannotBeLookedAtAreNamed) {
  TempDir dir;
  fs::create_directory_symlink(dir / "loop", dir / "loop");
  expect_part(refusal<DataError>(dir / "loop"), (dir / "loop").string());
  expect_part(refusal<DataError>(dir / std::string(300, 'n')), "File name too long");
  fs::create_directories(dir / "run");
  fs::create_symlink(dir / "run/checkpoints", dir / "run/checkpoints");
  expect_part(refusal<DataError>(dir / "run"), "checkpoints");
  write_adapter(dir / "run", small_adapter());
  fs::remove(dir / "run/adapter_model.safetensors");
  fs::create_symlink(dir / "run/adapter_model.safetensors", dir / "run/adapter_model.safetensors");
  expect_part(refusal<DataError>(dir / "run"), "adapter_model.safetensors");
}

TEST(AdapterFile, RefusesWhatItCannotHonourByName) {
  expect_part(refusal_of_change({{"use_dora", true}}), "'use_dora'");
  expect_part(refusal_of_change({{"lora_bias", true}}), "'lora_bias'");
  expect_part(refusal_of_change({{"layer_replication", {{0, 1}}}}), "'layer_replication'");
  expect_part(refusal_of_change({{"modules_to_save", {"lm_head"}}}), "'modules_to_save'");
  expect_part(refusal_of_change({{"rank_pattern", {{"q_proj", 4}}}}), "the rank is 4");
  expect_part(refusal_of_change({{"qalora", {{"scalings", {{kModule, 7}}}}}}),
              "'scalings' gives module '" + kModule + "' 7");
  expect_part(refusal_of_change({{"fan_in_fan_out", true}}), "'fan_in_fan_out'");
  expect_part(refusal_of_change({{"bias", "all"}}), "\"all\"");
  expect_part(refusal_of_change({{"peft_type", "IA3"}}), "\"IA3\"");
  expect_part(refusal_of_change({{"init_lora_weights", "pissa"}}), "\"pissa\"");
  expect_part(refusal_of_change({{"qalora", nullptr}, {"use_qalora", true}, {"qalora_group_size", 0}}),
              "'qalora_group_size' is 0");
}

TEST(AdapterFile, RefusesWrongNumbers) {
  expect_part(refusal_of_change({{"r", 0}}), "'r' is 0");
  expect_part(refusal_of_change({{"r", "two"}}), "'r' must be a whole number");
  expect_part(refusal_of_change({{"r", 3}, {"lora_alpha", 4.5}}), "the rank is 3");
  expect_part(refusal_of_change({{"lora_dropout", 1.0}}), "'lora_dropout' is 1");
  expect_part(refusal_of_change({{"lora_alpha", 4}}), "'scaling' is 1.5, but lora_alpha and r give 2");
  expect_part(refusal_of_change({{"qalora", {{"pooling", "max"}}}}), "\"max\"");
  expect_part(refusal_of_change({{"qalora", {{"group_size", 0}}}}), "'group_size' is 0");
  expect_part(refusal_of_change({{"qalora", {{"pooling", nullptr}}}}), "'pooling' is missing");
  expect_part(refusal_of_change({{"qalora", {{"pooling", "none"}}}}), "'group_size' is 32 with pooling none");
}

TEST(AdapterFile, RefusesWrongTensors) {
  const std::string a = "base_model.model." + kModule + ".lora_A.weight",
                    b = "base_model.model." + kModule + ".lora_B.weight";
  const at::Tensor good_a = at::ones({2, 3}), good_b = at::ones({4, 2});
  expect_part(refusal_of_tensors({{a, good_a}}), "lora_A but no lora_B");
  expect_part(refusal_of_tensors({{b, good_b}}), "lora_B but no lora_A");
  expect_part(refusal_of_tensors({{a, at::ones({3, 3})}, {b, good_b}}), "[3, 3]");
  expect_part(refusal_of_tensors({{a, good_a}, {b, at::ones({4, 5})}}), "[4, 5]");
  expect_part(refusal_of_tensors({{a, good_a}, {b, at::ones({8})}}), "expected a matrix");
  expect_part(refusal_of_tensors({{a, good_a}, {b, at::ones({4, 2}, at::kInt)}}), "is I32");
  expect_part(refusal_of_tensors({{a, good_a}, {b, at::full({4, 2}, std::numeric_limits<float>::quiet_NaN())}}),
              "not finite");
  expect_part(refusal_of_tensors({{a, good_a}, {b, good_b}, {"lm_head.weight", good_a}}),
              "'lm_head.weight' is not known");
  expect_part(refusal_of_tensors({}), "no tensor");
}

// Saved by torch itself: A = 0, 1, 2, .. / 8 of [2, 3] and B = 0, 1, .. / 4 of [4, 2], with the adapter's name in the
// keys.
TEST(AdapterFile, ReadsATorchFile) {
  TempDir dir;
  write_changed(dir.path(), {{"qalora", nullptr}});
  fs::remove(dir / "adapter_model.safetensors");
  fs::copy_file(test::source_dir() / "tests/data/adapter_torch/adapter_model.bin", dir / "adapter_model.bin");
  const AdapterFile read = read_adapter(dir.path());
  ASSERT_TRUE(read.modules.contains(kModule));
  EXPECT_TRUE(at::equal(read.modules.at(kModule).a, at::arange(0, 6, at::kFloat).reshape({2, 3}) / 8));
  EXPECT_TRUE(at::equal(read.modules.at(kModule).b, at::arange(0, 8, at::kFloat).reshape({4, 2}) / 4));
  // The other file goes first where both are there.
  write_safetensors(dir / "adapter_model.safetensors", {{"x", at::ones({2, 2})}});
  expect_part(refusal<DataError>(dir.path()), "'x' is not known");
}

TEST(AdapterFile, OtherFilesUnderATorchNameAreRefused) {
  TempDir dir;
  write_adapter(dir.path(), small_adapter());
  fs::rename(dir / "adapter_model.safetensors", dir / "adapter_model.bin");
  expect_part(refusal<DataError>(dir.path()), "adapter_model.bin");
  fs::remove(dir / "adapter_model.bin");
  expect_part(refusal<DataError>(dir.path()), "there is no adapter_model.safetensors");
}

TEST(FindAdapter, TakesTheFinalAdapterThenTheNewestCheckpoint) {
  TempDir dir;
  const auto put = [&](const fs::path& folder) { test::write_file(folder / "adapter_config.json", "{}"); };
  EXPECT_THROW(find_adapter(dir.path()), UserError);
  put(dir / "checkpoints/step-9");
  put(dir / "checkpoints/step-10");
  put(dir / "checkpoints/step-11x");
  fs::create_directories(dir / "checkpoints/step-200");  // not complete
  EXPECT_EQ(find_adapter(dir.path()), dir / "checkpoints/step-10");
  EXPECT_EQ(find_adapter(dir / "checkpoints/step-9"), dir / "checkpoints/step-9");
  put(dir / "adapter");
  EXPECT_EQ(find_adapter(dir.path()), dir / "adapter");
  EXPECT_EQ(find_adapter(dir / "adapter"), dir / "adapter");
}

TEST(FindAdapter, SaysWhatIsThereInstead) {
  TempDir dir;
  test::write_file(dir / "model/config.json", "{}");
  expect_part(refusal<UserError>(dir / "model"), "--model");
  expect_part(refusal<UserError>(dir / "model/config.json"), "is a file");
  expect_part(refusal<UserError>(dir / "absent"), "no such adapter");
}

TEST(ParsePooling, SuggestsTheNearestName) {
  EXPECT_EQ(parse_pooling("sum"), Pooling::kSum);
  try {
    parse_pooling("maen");
    FAIL();
  } catch (const UserError& error) {
    expect_part(error.what(), "mean");
  }
}

}  // namespace
}  // namespace qalora::io
