#include "qalora/io/checkpoint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora::io {
namespace {

using test::TempDir;
using Json = nlohmann::json;

// The message of the error of type E that opening the folder gives.
template <typename E>
std::string refusal(const fs::path& folder) {
  try {
    Checkpoint checkpoint(folder);
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << folder << " was accepted";
  return "";
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

void write_index(const fs::path& folder, const Json& weight_map) {
  test::write_file(folder / "model.safetensors.index.json",
                   Json{{"metadata", Json::object()}, {"weight_map", weight_map}}.dump());
}

// Two shards with one tensor each and their index.
void write_two_shards(const fs::path& folder) {
  fs::create_directories(folder);
  write_safetensors(folder / "s1.safetensors", {{"a", at::ones({2})}});
  write_safetensors(folder / "s2.safetensors", {{"b", at::zeros({3})}});
  write_index(folder, {{"a", "s1.safetensors"}, {"b", "s2.safetensors"}});
}

TEST(Checkpoint, ReadsShardsByTheirIndex) {
  TempDir dir;
  write_two_shards(dir.path());
  const Checkpoint checkpoint(dir.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(at::equal(checkpoint.read("a", {2}), at::ones({2})));
  EXPECT_EQ(checkpoint.total_bytes(), 20u);
  EXPECT_EQ(checkpoint.file_of("b").filename(), "s2.safetensors");
  EXPECT_THROW(checkpoint.read("c"), DataError);
}

TEST(Checkpoint, AnotherShapeNamesBoth) {
  TempDir dir;
  write_two_shards(dir.path());
  try {
    Checkpoint(dir.path()).read("a", {3});
    FAIL();
  } catch (const DataError& error) {
    expect_part(error.what(), "'a' has shape [2], expected [3]");
    expect_part(error.what(), "s1.safetensors");
  }
}

TEST(Checkpoint, TheSingleFileComesBeforeTheIndex) {
  TempDir dir;
  write_two_shards(dir.path());
  write_safetensors(dir / "model.safetensors", {{"single", at::ones({1})}});
  EXPECT_EQ(Checkpoint(dir.path()).names(), std::vector<std::string>{"single"});
}

TEST(Checkpoint, AMissingShardIsNamed) {
  TempDir dir;
  write_two_shards(dir.path());
  fs::remove(dir / "s2.safetensors");
  expect_part(refusal<DataError>(dir.path()), "'b' is said to be in 's2.safetensors', which is not there");
}

TEST(Checkpoint, AnIndexWithPathsIsRefused) {
  for (const char* name : {"../s1.safetensors", "/etc/s1.safetensors", "sub/s1.safetensors", "sub\\s1.safetensors", "",
                           "s1.bin", "..safetensors"}) {
    TempDir dir;
    write_two_shards(dir.path());
    write_index(dir.path(), {{"a", name}, {"b", "s2.safetensors"}});
    expect_part(refusal<DataError>(dir.path()), std::string("'") + name + "' is not the name of a .safetensors file");
  }
}

TEST(Checkpoint, ATensorInTheWrongShardIsRefused) {
  TempDir dir;
  write_two_shards(dir.path());
  write_index(dir.path(), {{"a", "s2.safetensors"}, {"b", "s1.safetensors"}});
  expect_part(refusal<DataError>(dir.path()), "'a' is not in 's2.safetensors'");
}

TEST(Checkpoint, ATensorInTwoShardsIsRefused) {
  TempDir dir;
  write_two_shards(dir.path());
  write_safetensors(dir / "s2.safetensors", {{"a", at::ones({2})}, {"b", at::zeros({3})}});
  expect_part(refusal<DataError>(dir.path()), "s2.safetensors: tensor 'a' is in this file");
}

TEST(Checkpoint, ATensorThatTheIndexForgetsIsRefused) {
  TempDir dir;
  write_two_shards(dir.path());
  write_safetensors(dir / "s2.safetensors", {{"b", at::zeros({3})}, {"c", at::ones({2})}});
  expect_part(refusal<DataError>(dir.path()), "'c' is in this file, but model.safetensors.index.json does not name it");
}

TEST(Checkpoint, ADamagedIndexIsRefused) {
  TempDir dir;
  write_two_shards(dir.path());
  const auto index = dir / "model.safetensors.index.json";
  test::write_file(index, "{\"weight_map\": {\"a\": \"s1.safe");
  expect_part(refusal<DataError>(dir.path()), "the file ends in the middle");
  test::write_file(index, "{}");
  expect_part(refusal<DataError>(dir.path()), "'weight_map'");
  test::write_file(index, R"({"weight_map": {"a": 1}})");
  expect_part(refusal<DataError>(dir.path()), "must be text");
  test::write_file(index, R"({"weight_map": {"a": "s1.safetensors", "a": "s2.safetensors"}})");
  expect_part(refusal<DataError>(dir.path()), "'a' stands twice");
}

TEST(Checkpoint, OtherFormatsAreNamedWithWhatToDo) {
  const auto with_file = [](const std::string& name) {
    TempDir dir;
    test::write_file(dir / name, "x");
    return refusal<DataError>(dir.path());
  };
  expect_part(with_file("pytorch_model.bin"), "pytorch_model.bin: expected a file of torch.save");
  expect_part(with_file("consolidated.00.pth"), "consolidated.00.pth");
  expect_part(with_file("model-q4.gguf"), "model-q4.gguf: does not begin with 'GGUF'");
  expect_part(with_file("adapter_model.safetensors"), "--adapter");
  expect_part(with_file("readme.txt"), "expected model.safetensors");
}

TEST(Checkpoint, AFileOrNothingIsAUserError) {
  TempDir dir;
  test::write_file(dir / "file", "x");
  expect_part(refusal<UserError>(dir / "file"), "is a file");
  expect_part(refusal<UserError>(dir / "absent"), "no such file or folder");
}

TEST(JsonFile, RefusesDamage) {
  TempDir dir;
  const auto why = [&](const std::string& text) -> std::string {
    test::write_file(dir / "c.json", text);
    try {
      read_json_file(dir / "c.json");
    } catch (const DataError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(why(R"({"a": [1, {"b": 2}], "c": {"b": 1}})"), "accepted");
  expect_part(why("{\n\"a\": 1,\n}"), "line 3");
  expect_part(why("{\"a\" 1}"), "not valid JSON at line 1, byte 6 of 7");
  expect_part(why("{\n\"a\": "), "the file ends in the middle");
  expect_part(why(""), "the file is empty");
  expect_part(why(std::string(100, '[') + std::string(100, ']')), "levels deep");
  expect_part(why(R"({"a": 1, "a": 2})"), "'a' stands twice");
  expect_part(why(std::string("{}\0{", 4)), "zero byte");
  expect_part(why("{\"a\": \"\xff\"}"), "not UTF-8");
  expect_part(why(R"({"a": 1e999})"), "out of range");
}

TEST(CheckpointWriter, SplitsIntoShardsThatReadBack) {
  TempDir dir;
  std::vector<PlannedTensor> plan;
  for (int i = 0; i < 5; ++i) plan.push_back({"t" + std::to_string(i), Dtype::kF32, {4}});
  plan.push_back({"large", Dtype::kF32, {64}});  // larger than a shard
  CheckpointWriter writer(dir.path(), plan, {}, /*shard_bytes=*/40);
  for (int i = 0; i < 5; ++i) writer.write("t" + std::to_string(i), at::full({4}, i, at::kFloat));
  writer.write("large", at::ones({64}));
  writer.finish();
  const Checkpoint checkpoint(dir.path());
  EXPECT_EQ(checkpoint.files().size(), 4u);
  EXPECT_EQ(checkpoint.files()[0].filename(), "model-00001-of-00004.safetensors");
  for (int i = 0; i < 5; ++i)
    EXPECT_TRUE(at::equal(checkpoint.read("t" + std::to_string(i)), at::full({4}, i, at::kFloat)));
  EXPECT_EQ(read_json_file(dir / "model.safetensors.index.json")["metadata"]["total_size"], 5 * 16 + 256);
}

TEST(CheckpointWriter, OneShardHasNoIndex) {
  TempDir dir;
  CheckpointWriter writer(dir.path(), {{"a", Dtype::kF32, {2}}}, {{"format", "mlx"}});
  writer.write("a", at::ones({2}));
  writer.finish();
  EXPECT_TRUE(fs::exists(dir / "model.safetensors"));
  EXPECT_FALSE(fs::exists(dir / "model.safetensors.index.json"));
  EXPECT_EQ(SafetensorsFile(dir / "model.safetensors").metadata().at("format"), "mlx");
}

TEST(CopySidecars, TakesTheTokenizerAndLeavesTheRest) {
  TempDir from, to;
  test::write_file(from / "tokenizer.model", "spm");
  test::write_file(from / "tokenizer_config.json", "{}");
  test::write_file(from / "pytorch_model.bin", "no");
  copy_sidecars(from.path(), to.path());
  EXPECT_EQ(test::read_file(to / "tokenizer.model"), "spm");
  EXPECT_TRUE(fs::exists(to / "tokenizer_config.json"));
  EXPECT_FALSE(fs::exists(to / "pytorch_model.bin"));
}

TEST(CopySidecars, TakesEveryTokenizersFiles) {
  TempDir from, to;
  for (const char* name : {"vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja"})
    test::write_file(from / name, name);
  copy_sidecars(from.path(), to.path());
  for (const char* name : {"vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja"})
    EXPECT_EQ(test::read_file(to / name), name);
  EXPECT_EQ(sidecar_bytes(from.path()) - sidecar_bytes(TempDir().path()), 10u + 10 + 17 + 19);
}

TEST(CopySidecars, WhatIsThereAndCannotBeCopiedIsNamed) {
  const auto refused = [](const std::function<void(const fs::path&)>& make) {
    TempDir dir;
    make(dir / "tokenizer.model");
    try {
      sidecars(dir.path());
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find((dir / "tokenizer.model").string()), std::string::npos) << error.what();
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_NE(refused([](const fs::path& path) { fs::create_symlink("nowhere", path); }).find("leads nowhere"),
            std::string::npos);
  EXPECT_NE(refused([](const fs::path& path) { fs::create_symlink(path, path); }).find("cannot be read"),
            std::string::npos);
  EXPECT_NE(refused([](const fs::path& path) { fs::create_directory(path); }).find("is a folder"), std::string::npos);
  EXPECT_NE(refused([](const fs::path& path) { ::mkfifo(path.c_str(), 0600); }).find("is a pipe"), std::string::npos);
  EXPECT_EQ(refused([](const fs::path& path) { test::write_file(path, "x"); }), "accepted");
}

TEST(Checkpoint, PathsThatCannotBeLookedAtAreNamed) {
  TempDir dir;
  fs::create_directory_symlink(dir / "loop", dir / "loop");
  EXPECT_THROW(Checkpoint(dir / "loop"), DataError);
  EXPECT_THROW(Checkpoint(dir / std::string(300, 'n')), DataError);
  fs::create_directories(dir / "model");
  fs::create_symlink(dir / "model/model.safetensors", dir / "model/model.safetensors");
  EXPECT_THROW(Checkpoint(dir / "model"), DataError);
}

TEST(CheckpointWriter, RefusesATensorOfAnotherDtypeOrShapeThanPlanned) {
  TempDir dir;
  CheckpointWriter writer(dir.path(), {{"a", Dtype::kF32, {2, 3}}}, {});
  EXPECT_THROW(writer.write("a", at::ones({2, 3}, at::kInt)), InternalError);  // as many bytes
  EXPECT_THROW(writer.write("a", at::ones({3, 2})), InternalError);
}

TEST(WriteSafetensors, EveryTensorIsAligned) {
  TempDir dir;
  write_safetensors(dir / "model.safetensors",
                    {{"a", at::ones({3}, at::kHalf)}, {"b", at::ones({2})}, {"c", at::ones({1}, at::kByte)}});
  const SafetensorsFile file(dir / "model.safetensors");
  for (const auto& [name, info] : file.tensors())
    EXPECT_EQ(info.begin % static_cast<uint64_t>(dtype_bytes(info.dtype)), 0u) << name;
  EXPECT_EQ(file.info("b").begin, 0u);
}

// A quantised matrix p and a dense one, as files hold them.
std::map<std::string, at::Tensor> quantised_tensors() {
  return {{"p.weight", at::arange(0, 8, at::kInt).reshape({2, 4})},
          {"p.scales", at::full({2, 1}, 0.5)},
          {"p.biases", at::zeros({2, 1})},
          {"dense.weight", at::ones({2, 2})}};
}

std::string fingerprint_of(const std::map<std::string, at::Tensor>& tensors) {
  TempDir dir;
  write_safetensors(dir / "model.safetensors", tensors);
  return base_fingerprint(Checkpoint(dir.path()));
}

TEST(Fingerprint, OffsetsAndDenseTensorsDoNotCount) {
  const auto base = quantised_tensors();
  auto merged = base;
  merged["p.biases"] = at::ones({2, 1});
  merged["dense.weight"] = at::zeros({2, 2});
  EXPECT_EQ(fingerprint_of(base), fingerprint_of(merged));
  EXPECT_EQ(fingerprint_of(base).size(), 64u);
}

TEST(Fingerprint, CodesScalesNamesAndShapesCount) {
  const auto base = quantised_tensors();
  const std::string expected = fingerprint_of(base);
  auto codes = base, scales = base, shape = base, renamed = base;
  codes["p.weight"] = base.at("p.weight") + 1;
  scales["p.scales"] = at::full({2, 1}, 0.25);
  shape["p.weight"] = base.at("p.weight").reshape({4, 2});
  shape["p.scales"] = at::full({4, 1}, 0.5);
  for (const char* part : {"weight", "scales", "biases"}) {
    renamed[std::string("q.") + part] = renamed[std::string("p.") + part];
    renamed.erase(std::string("p.") + part);
  }
  for (const auto& other : {codes, scales, shape, renamed}) EXPECT_NE(fingerprint_of(other), expected);
}

TEST(Fingerprint, ScalesCountByValueWhateverTheirDtype) {
  auto half = quantised_tensors();
  half["p.scales"] = half["p.scales"].to(at::kHalf);
  EXPECT_EQ(fingerprint_of(half), fingerprint_of(quantised_tensors()));
  half["p.scales"] = half["p.scales"].to(at::kInt);
  EXPECT_THROW(fingerprint_of(half), DataError);
}

std::string state_of(const std::map<std::string, at::Tensor>& tensors) {
  TempDir dir;
  write_safetensors(dir / "model.safetensors", tensors);
  return base_state_fingerprint(Checkpoint(dir.path()));
}

TEST(StateFingerprint, IsOfWhatTheFingerprintLeavesOut) {
  const auto base = quantised_tensors();
  const std::string expected = state_of(base);
  EXPECT_EQ(expected.size(), 64u);
  auto codes = base, scales = base;
  codes["p.weight"] = base.at("p.weight") + 1;
  scales["p.scales"] = at::full({2, 1}, 0.25);
  for (const auto& other : {codes, scales}) EXPECT_EQ(state_of(other), expected);

  auto offsets = base, dense = base, shape = base, renamed = base, more = base, integers = base;
  offsets["p.biases"] = at::full({2, 1}, 1e-30);
  dense["dense.weight"] = at::eye(2);
  shape["dense.weight"] = at::ones({4, 1});
  renamed["other.weight"] = base.at("dense.weight");
  renamed.erase("dense.weight");
  more["norm.weight"] = at::ones({2});
  integers["dense.weight"] = base.at("dense.weight").view(at::kInt);  // the same bytes
  for (const auto& other : {offsets, dense, shape, renamed, more, integers}) EXPECT_NE(state_of(other), expected);
}

TEST(StateFingerprint, NumbersCountByValueWhateverTheirDtype) {
  auto base = quantised_tensors(), half = base;
  base["dense.weight"] =
      at::arange(0, 1500000, at::kFloat).remainder(1021).reshape({2, 750000});  // more than one piece, exact in 16 bits
  half["dense.weight"] = base["dense.weight"].to(at::kHalf);
  half["p.biases"] = half["p.biases"].to(at::kBFloat16);
  EXPECT_EQ(state_of(half), state_of(base));
  half["dense.weight"][1][749999] += 1;
  EXPECT_NE(state_of(half), state_of(base));
}

TEST(Fingerprint, IsEmptyForADenseModel) { EXPECT_EQ(fingerprint_of({{"a.weight", at::ones({2, 2})}}), ""); }

}  // namespace
}  // namespace qalora::io
