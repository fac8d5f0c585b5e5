// What the real binary does to the places it is told to write to: inputs and other people's folders stay, dry runs say
// what a real run would say, killed runs leave nothing for ever.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "integration/training.h"
#include "qalora/core/file.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::test {
namespace {

class Output : public ::testing::Test {
 protected:
  Output() { write_random_dense(dir_ / "dense"); }

  std::string at(const std::string& name) const { return (dir_ / name).string(); }

  void expect_refused(std::vector<std::string> words, int code, const std::string& part) const {
    const Outcome run = run_qalora(words);
    EXPECT_EQ(run.exit_code, code) << run.err;
    EXPECT_NE(run.err.find(part), std::string::npos) << "'" << part << "' is not in: " << run.err;
    EXPECT_EQ(run.err.find("internal error"), std::string::npos) << run.err;
    EXPECT_EQ(run.out, "");
  }

  // An adapter of int4 that was trained nowhere.
  io::AdapterFile make_adapter() {
    quantize_to(dir_ / "dense", dir_ / "int4", 4, 32);
    return random_adapter(dir_ / "int4", io::Pooling::kSum, 0.02);
  }

  TempDir dir_;
};

TEST_F(Output, ForceNeverTakesAnInput) {
  fs::create_directories(dir_ / "box");
  fs::copy(dir_ / "dense", dir_ / "box/m");
  fs::copy_file(dir_ / "dense/config.json", dir_ / "box/config.json");  // box looks like a checkpoint itself
  fs::copy_file(dir_ / "dense/model.safetensors", dir_ / "box/model.safetensors");
  expect_refused({"quantize", "--model", at("box/m"), "--out", at("box"), "--force"}, 2, "holds the input");
  fs::create_directory_symlink(dir_ / "box/m", dir_ / "link");
  expect_refused({"quantize", "--model", at("link"), "--out", at("box"), "--force"}, 2, "holds the input");
  expect_refused({"quantize", "--model", at("box/m"), "--out", at("box/../box/m/.."), "--force"}, 2, "holds the input");
  EXPECT_TRUE(fs::exists(dir_ / "box/m/model.safetensors"));

  io::AdapterFile adapter = make_adapter();
  fs::copy(dir_ / "int4", dir_ / "project");
  write_adapter_to(dir_ / "project/run", adapter);
  write_file(dir_ / "project/data.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
  expect_refused({"merge", "--model", at("int4"), "--adapter", at("project/run"), "--out", at("project"), "--force"}, 2,
                 "holds the input");
  write_adapter_to(dir_ / "adapter", adapter);
  const std::vector<std::string> merge = {"merge",       "--model", at("int4"),    "--adapter",
                                          at("adapter"), "--out",   at("project"), "--force"};
  std::vector<std::string> with_data = merge;
  with_data.insert(with_data.end(), {"--data", at("project/data.jsonl")});
  expect_refused(with_data, 2, "holds the input");
  adapter.config.training_data = at("project/data.jsonl");  // not named on the command line, but read
  write_adapter_to(dir_ / "adapter", adapter);
  expect_refused(merge, 2, "holds the input");
  EXPECT_TRUE(fs::exists(dir_ / "project/data.jsonl"));
}

TEST_F(Output, ForceReplacesCheckpointsAndNothingElse) {
  const std::vector<std::string> quantize = {"quantize", "--model", at("dense"), "--out",
                                             at("out"),  "--force", "-q",        "--json"};
  write_file(dir_ / "out/thesis.tex", "precious");
  expect_refused(quantize, 2, "holds no checkpoint");
  write_file(dir_ / "out/config.json", "{}");  // many programs have one
  expect_refused(quantize, 2, "holds no checkpoint");
  EXPECT_EQ(read_file(dir_ / "out/thesis.tex"), "precious");
  fs::remove_all(dir_ / "out");
  write_file(dir_ / "out", "a file");
  expect_refused(quantize, 2, "is a file");
  EXPECT_EQ(read_file(dir_ / "out"), "a file");
  fs::remove(dir_ / "out");
  fs::create_directories(dir_ / "out");
  for (int i = 0; i < 2; ++i) {  // an empty folder, then the checkpoint that the first run wrote
    const Outcome run = run_qalora(quantize);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_TRUE(fs::exists(dir_ / "out/model.safetensors"));
  }
  EXPECT_EQ(list_folder(dir_.path()), (std::vector<std::string>{"dense", "out"}));
}

TEST_F(Output, DryRunsSayWhatARealRunWouldSay) {
  write_adapter_to(dir_ / "adapter", make_adapter());
  write_file(dir_ / "taken/file", "x");
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"quantize", "--model", at("dense"), "--dry-run"},
        {"merge", "--model", at("int4"), "--adapter", at("adapter"), "--dry-run"}}) {
    const auto to = [&](const std::string& out) {
      std::vector<std::string> words = command;
      words.insert(words.end(), {"--out", out});
      return words;
    };
    expect_refused(to(at("taken")), 2, "exists already");
    expect_refused(to(at("dense")), 2, command[0] == "merge" ? "exists already" : "same place");
    expect_refused(to("/proc/x/y"), 5, "/proc/x");
    expect_refused(to("/proc/out"), 5, "No such file or directory");
    expect_refused(to(at("taken/file/out")), 5, "is a file, expected a folder");
    EXPECT_EQ(run_qalora(to(at("deep/new/out"))).exit_code, 0);
    EXPECT_EQ(run_qalora(command).exit_code, 0);  // without --out there is nothing to check
    EXPECT_FALSE(fs::exists(dir_ / "deep"));
  }
}

TEST_F(Output, SidecarsThatCannotBeCopiedAreSaidFirst) {
  fs::create_symlink("nowhere", dir_ / "dense/tokenizer.model");
  expect_refused({"quantize", "--model", at("dense"), "--out", at("out"), "--dry-run"}, 3, "tokenizer.model");
  expect_refused({"quantize", "--model", at("dense"), "--out", at("out")}, 3, "tokenizer.model");
  EXPECT_EQ(list_folder(dir_.path()), (std::vector<std::string>{"dense"}));
}

TEST_F(Output, PipesAsInputsDoNotHang) {
  fs::remove(dir_ / "dense/model.safetensors");
  ASSERT_EQ(::mkfifo((dir_ / "dense/model.safetensors").c_str(), 0600), 0);
  expect_refused({"quantize", "--model", at("dense"), "--out", at("out")}, 3, "is a pipe");
}

// Killed while it writes: what it leaves goes with the next run.
TEST_F(Output, WhatAKilledRunLeftGoesWithTheNext) {
  write_file(dir_ / ("out" + std::string(kStagingMark) + "99-0000000a/model.safetensors"), "half");
  EXPECT_EQ(run_qalora({"quantize", "--model", at("dense"), "--out", at("out"), "-q", "--json"}).exit_code, 0);
  EXPECT_EQ(list_folder(dir_.path()), (std::vector<std::string>{"dense", "out"}));
}

TEST_F(Output, UnknownBasesNeedAWordAndAreReported) {
  io::AdapterFile adapter = make_adapter();
  write_adapter_to(dir_ / "adapter", adapter);
  std::vector<std::string> merge = {"merge", "--model",    at("int4"), "--adapter", at("adapter"),
                                    "--out", at("merged"), "-q",       "--json"};
  Outcome run = run_qalora(merge);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  json answer = json::parse(run.out);
  EXPECT_EQ(answer["base_checked"], "everything");
  EXPECT_EQ(answer["logits_decide"], true);
  EXPECT_LE(answer["worst_offset_error"], 1.0);
  expect_refused({"merge", "--model", at("merged"), "--adapter", at("adapter"), "--out", at("twice")}, 2, "already");
  write_file(dir_ / "ids.json", "[[1, 2, 3, 4]]");
  expect_refused({"eval", "--model", at("merged"), "--adapter", at("adapter"), "--task", "perplexity", "--token-ids",
                  at("ids.json")},
                 2, "already");

  adapter.config.base_fingerprint = adapter.config.base_state_fingerprint = "";
  write_adapter_to(dir_ / "adapter", adapter);
  merge[6] = at("merged2");
  expect_refused(merge, 3, "--accept-unknown-base");
  merge.push_back("--accept-unknown-base");
  run = run_qalora(merge);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(json::parse(run.out)["base_checked"], "nothing");
}

// What training writes about its base and its data is what a merge started from another folder needs.
TEST_F(Output, TrainingRecordsItsBaseAndItsDataForTheMerge) {
  quantize_to(dir_ / "dense", dir_ / "int4", 4, 32);
  write_file(dir_ / "data.jsonl", "{\"input_ids\": [1, 2, 3, 4], \"labels\": [1, 2, 3, 4]}\n");
  const std::string relative = fs::relative(dir_ / "data.jsonl", fs::current_path()).string();
  ASSERT_TRUE(fs::path(relative).is_relative());
  const Outcome run = run_qalora({"finetune", "--model",
                                  at("int4"), "--data",
                                  relative,   "--data-format",
                                  "tokens",   "--out",
                                  at("run"),  "--steps",
                                  "2",        "--batch-size",
                                  "1",        "--rank",
                                  "2",        "--learning-rate",
                                  "0.01",     "--sequence-length",
                                  "64",       "--threads",
                                  "1",        "-q"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json own = json::parse(read_file(dir_ / "run/adapter/adapter_config.json")).at("qalora");
  const fs::path recorded = own.at("training_data").get<std::string>();
  EXPECT_TRUE(recorded.is_absolute());
  EXPECT_TRUE(same_file(recorded, dir_ / "data.jsonl"));
  EXPECT_EQ(own.at("base_state_fingerprint").get<std::string>().size(), 64u);
  const Outcome merge =
      run_qalora({"merge", "--model", at("int4"), "--adapter", at("run"), "--out", at("merged"), "-q", "--json"});
  ASSERT_EQ(merge.exit_code, 0) << merge.err;
  EXPECT_EQ(json::parse(merge.out).at("base_checked"), "everything");
  EXPECT_EQ(json::parse(merge.out).at("tokens_from"), "1 records of " + recorded.string());
}

}  // namespace
}  // namespace qalora::test
