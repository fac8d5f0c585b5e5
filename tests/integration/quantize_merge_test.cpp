// quantize, merge and inspect as a person runs them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "qalora/text/tokenizer.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::test {
namespace {

using Json = nlohmann::json;

// Runs the program, which must succeed, and reads its one JSON document.
Json run_json(std::vector<std::string> arguments) {
  arguments.push_back("--json");
  const Outcome run = run_qalora(arguments);
  EXPECT_EQ(run.exit_code, 0) << run.err;
  return Json::parse(run.out, nullptr, false);
}

void expect_failure(const std::vector<std::string>& arguments, int exit_code, const std::string& part) {
  const Outcome run = run_qalora(arguments);
  EXPECT_EQ(run.exit_code, exit_code) << run.err;
  EXPECT_NE(run.err.find(part), std::string::npos) << "'" << part << "' is not in: " << run.err;
  EXPECT_EQ(run.out, "");
}

size_t entries(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), fs::directory_iterator());
}

class QuantizeMerge : public ::testing::Test {
 protected:
  QuantizeMerge() { write_random_dense(dir_ / "dense"); }
  std::string at(const std::string& name) const { return (dir_ / name).string(); }
  TempDir dir_;
};

TEST_F(QuantizeMerge, TheWholeRoad) {
  const Json quantized =
      run_json({"quantize", "--model", at("dense"), "--out", at("int4"), "--bits", "4", "--group-size", "32"});
  EXPECT_EQ(quantized["bits"], 4);
  EXPECT_EQ(quantized["group_size"], 32);
  EXPECT_EQ(quantized["method"], "rtn");
  EXPECT_EQ(quantized["bits_per_weight"], 6.0);
  ASSERT_EQ(quantized["layers"].size(), 14u);
  EXPECT_GT(quantized["layers"][0]["error"], 0.01);
  EXPECT_TRUE(quantized["layers"][0]["loss"].is_null());
  EXPECT_GT(quantized["peak_memory_bytes"], 1000000);

  const Json inspected = run_json({"inspect", at("int4")});
  EXPECT_EQ(inspected["kind"], "quantised checkpoint");
  EXPECT_EQ(inspected["architecture"], "llama");
  EXPECT_EQ(inspected["bytes"], quantized["bytes"]);
  EXPECT_EQ(inspected["bits_per_weight"], 6.0);
  EXPECT_EQ(run_json({"inspect", at("dense")})["bits_per_weight"], 16.0);
  EXPECT_EQ(run_json({"inspect", at("dense")})["parameters"], inspected["parameters"]);

  write_adapter_to(dir_ / "adapter", random_adapter(dir_ / "int4", io::Pooling::kSum, 0.02));
  EXPECT_EQ(run_json({"inspect", at("adapter")})["kind"], "adapter");
  const Json merged = run_json({"merge", "--model", at("int4"), "--adapter", at("adapter"), "--out", at("merged")});
  EXPECT_EQ(merged["layers"], 14);
  EXPECT_EQ(merged["verified"], true);
  EXPECT_LE(merged["max_logit_difference"], merged["tolerance"]);
  EXPECT_GT(merged["adapter_effect"], merged["tolerance"]);
  EXPECT_GT(merged["offset_bytes_changed"], 1000);
  EXPECT_EQ(merged["code_bytes_changed"], 0);
  EXPECT_EQ(merged["scale_bytes_changed"], 0);
  EXPECT_EQ(run_json({"inspect", at("merged")})["base_fingerprint"], inspected["base_fingerprint"]);
  EXPECT_EQ(entries(dir_.path()), 4u);  // nothing temporary is left
}

TEST_F(QuantizeMerge, DryRunsWriteNothing) {
  const Json dry = run_json({"quantize", "--model", at("dense"), "--out", at("int4"), "--dry-run"});
  EXPECT_GT(dry["estimated_peak_memory_bytes"], 1000000);
  EXPECT_FALSE(fs::exists(dir_ / "int4"));
  quantize_to(dir_ / "dense", dir_ / "int4", 4, 32);
  write_adapter_to(dir_ / "adapter", random_adapter(dir_ / "int4", io::Pooling::kMean, 0.02));
  EXPECT_EQ(run_json({"merge", "--model", at("int4"), "--adapter", at("adapter"), "--out", at("merged"),
                      "--dry-run"})["layers"],
            14);
  EXPECT_FALSE(fs::exists(dir_ / "merged"));
}

TEST_F(QuantizeMerge, BadInputNamesWhatToDo) {
  const std::vector<std::string> base = {"quantize", "--model", at("dense"), "--out", at("out")};
  const auto with = [&](std::initializer_list<std::string> more) {
    std::vector<std::string> all = base;
    all.insert(all.end(), more);
    return all;
  };
  expect_failure(with({"--method", "gptq"}), 2, "needs --calibration FILE");
  expect_failure(with({"--calibration", at("absent")}), 2, "no such file");
  expect_failure(with({"--method", "rtn", "--calibration", at("dense/config.json")}), 2,
                 "--method rtn takes no --calibration");
  expect_failure(with({"--calibration", at("dense")}), 2, "is a folder, expected a file");
  expect_failure(with({"--samples", "4"}), 2, "--samples needs --calibration FILE");
  expect_failure(with({"--no-refit"}), 2, "--no-refit needs --calibration FILE");
  expect_failure(with({"--refit"}), 2, "error: --refit needs --calibration FILE");
  expect_failure(with({"--method", "gptqq"}), 2, "did you mean 'gptq'");
  expect_failure(with({"--bits", "5"}), 2, "--bits: expected 2, 3 or 4, got '5'");
  expect_failure(with({"--bits", "foo"}), 2, "--bits: expected 2, 3 or 4, got 'foo'");
  expect_failure(with({"--threads", "0"}), 2, "--threads: expected a whole number from 1 to 4096, got '0'");
  expect_failure(with({"--bits", "16"}), 2, "export --to safetensors");
  expect_failure(with({"--group-size", "48"}), 2, "--group-size 48");
  expect_failure({"quantize", "--model", at("absent"), "--out", at("out")}, 2, "absent");
  expect_failure({"quantize", "--model", at("dense"), "--out", at("dense")}, 2, "same place");
  write_file(dir_ / "taken/file", "x");
  expect_failure({"quantize", "--model", at("dense"), "--out", at("taken")}, 2, "exists already");
  EXPECT_EQ(read_file(dir_ / "taken/file"), "x");
  fs::resize_file(dir_ / "dense/model.safetensors", 5000);
  expect_failure(base, 3, "incomplete download");
  EXPECT_EQ(entries(dir_.path()), 2u);
}

TEST_F(QuantizeMerge, MergeRefusesWhatDoesNotBelongTogether) {
  quantize_to(dir_ / "dense", dir_ / "int4", 4, 32);
  quantize_to(dir_ / "dense", dir_ / "int3", 3, 32);
  const io::AdapterFile adapter = random_adapter(dir_ / "int4", io::Pooling::kSum, 0.02);
  write_adapter_to(dir_ / "adapter", adapter);
  expect_failure({"merge", "--model", at("dense"), "--adapter", at("adapter"), "--out", at("out")}, 2, "dense model");
  expect_failure({"merge", "--model", at("int3"), "--adapter", at("adapter"), "--out", at("out")}, 3, "another base");
  expect_failure({"merge", "--model", at("int4"), "--adapter", at("dense"), "--out", at("out")}, 2, "no adapter here");
  expect_failure({"merge", "--model", at("int4"), "--adapter", at("adapter"), "--out", at("int4"), "--force"}, 2,
                 "same place");
  io::AdapterFile lora = adapter;
  lora.config.pooling = io::Pooling::kNone;
  lora.config.group_size = 0;
  write_adapter_to(dir_ / "lora", lora);
  expect_failure({"merge", "--model", at("int4"), "--adapter", at("lora"), "--out", at("out")}, 3, "ordinary LoRA");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  EXPECT_EQ(entries(dir_.path()), 5u);
}

TEST_F(QuantizeMerge, InspectExplainsKernels) {
  run_json({"quantize", "--model", at("dense"), "--out", at("int3"), "--bits", "3", "--group-size", "64"});
  const Json explained = run_json({"inspect", at("int3"), "--explain-kernels", "--device", "cpu"});
  ASSERT_EQ(explained.at("layers").size(), 1U);  // all shapes are treated alike
  EXPECT_EQ(explained.at("layers")[0].at("shapes").size(), 4U);
  EXPECT_NE(explained.at("layers")[0].at("kernels").dump().find("rows 1 to 8: matvec"), std::string::npos)
      << explained.dump();
  run_json({"quantize", "--model", at("dense"), "--out", at("whole"), "--bits", "3", "--group-size", "-1"});
  EXPECT_NE(run_json({"inspect", at("whole"), "--explain-kernels", "--device", "cpu"}).at("layers"),
            explained.at("layers"));
  expect_failure({"inspect", at("dense"), "--explain-kernels"}, 2, "is a dense checkpoint");
}

TEST_F(QuantizeMerge, InspectKnowsFilesByWhatTheyHold) {
  write_file(dir_ / "alpaca.json", R"([{"instruction": "a", "input": "", "output": "b"}])");
  write_file(dir_ / "choice.jsonl", R"({"context": "a", "choices": ["b", "c"], "answer": 0})"
                                    "\n");
  write_file(dir_ / "metrics.jsonl",
             "{\"event\":\"step\",\"step\":1,\"loss\":2.5}\n{\"event\":\"step\",\"step\":2,\"loss\":2.0}\n{\"ev");
  write_file(dir_ / "config.toml", "steps = 5\nlearning_rate = 1e-4\n");
  write_file(dir_ / "what.dat", "????????");
  EXPECT_EQ(run_json({"inspect", at("dense/model.safetensors")})["kind"], "safetensors");
  EXPECT_EQ(run_json({"inspect", at("dense/config.json")})["kind"], "checkpoint");
  EXPECT_EQ(run_json({"inspect", at("alpaca.json")})["format"], "alpaca");
  EXPECT_EQ(run_json({"inspect", at("alpaca.json")})["records"], 1);
  EXPECT_EQ(run_json({"inspect", at("choice.jsonl")})["questions"], 1);
  EXPECT_EQ(run_json({"inspect", at("metrics.jsonl")})["last_step"]["loss"], 2.0);
  EXPECT_EQ(run_json({"inspect", at("config.toml")})["keys"]["steps"], "5");
  const Outcome human = run_qalora({"inspect", at("dense")});
  EXPECT_NE(human.out.find("bits per weight"), std::string::npos);
  EXPECT_NE(human.out.find("model.layers.1.mlp.up_proj.weight"), std::string::npos) << human.out;
  expect_failure({"inspect", at("what.dat")}, 3, "not a kind of file");
  expect_failure({"inspect", at("absent")}, 2, "no such file");
  fs::create_directories(dir_ / "empty");
  expect_failure({"inspect", at("empty")}, 3, "nothing known in this folder");
}

}  // namespace
}  // namespace qalora::test
