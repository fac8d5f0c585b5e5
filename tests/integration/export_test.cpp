// The export command from outside: what it refuses before any work, what it says, what it leaves behind.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "support/support.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::test {
namespace {

class ExportCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    base_ = dir_ / "base";
    const auto made = run_qalora(
        {"quantize", "--model", (source_dir() / "models/miniature").string(), "--out", base_, "--bits", "3", "-q"});
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }

  Outcome run(const std::string& to, const fs::path& out, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"export", "--model", base_, "--to", to, "--out", out.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_qalora(arguments);
  }

  static void expect_part(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
  }

  TempDir dir_;
  std::string base_;
};

TEST_F(ExportCommand, WritesAFolderThatIsAModelWithItsTokenizer) {
  const auto outcome = run("mlx", dir_ / "out", {"--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json.at("to"), "mlx");
  EXPECT_EQ(json.at("largest_error"), 0.0);
  EXPECT_EQ(json.at("tensors").size(), 28u);
  expect_part(outcome.err, "mlx_lm.generate --model " + (dir_ / "out").string());
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.model"})
    EXPECT_TRUE(fs::exists(dir_ / "out" / name)) << name;
  const auto text = run_qalora({"generate", "--model", (dir_ / "out").string(), "--prompt", "The", "--temperature", "0",
                                "--max-tokens", "4", "-q"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
}

TEST_F(ExportCommand, ADryRunSaysTheSizeAndWritesNothing) {
  const auto outcome = run("safetensors", dir_ / "out", {"--dry-run", "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_TRUE(json.at("dry_run"));
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  ASSERT_EQ(run("safetensors", dir_ / "out").exit_code, 0);
  // The estimate holds what was written, with room for headers and the files beside the weights.
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(dir_ / "out")) bytes += entry.file_size();
  EXPECT_GE(json.at("bytes").get<uint64_t>(), bytes);
  EXPECT_LE(json.at("bytes").get<uint64_t>(), bytes + 10'000'000);
}

TEST_F(ExportCommand, KeepsWhatIsThereUnlessForced) {
  ASSERT_EQ(run("mlx", dir_ / "out").exit_code, 0);
  const auto again = run("safetensors", dir_ / "out");
  EXPECT_EQ(again.exit_code, 2);
  expect_part(again.err, "--force");
  EXPECT_EQ(run("safetensors", dir_ / "out", {"--force"}).exit_code, 0);
  const auto inside = run("mlx", fs::path(base_) / "out", {"--force"});
  EXPECT_EQ(inside.exit_code, 2);
  expect_part(inside.err, "lies inside the input");
  EXPECT_EQ(run("mlx", base_, {"--force"}).exit_code, 2);
  EXPECT_TRUE(fs::exists(fs::path(base_) / "model.safetensors"));
}

TEST_F(ExportCommand, ForceReplacesAGgufFileAndNothingElse) {
  ASSERT_EQ(run("gguf", dir_ / "a.gguf").exit_code, 0);
  EXPECT_EQ(run("gguf", dir_ / "a.gguf", {"--force"}).exit_code, 0);
  write_file(dir_ / "alpaca.json", "[]");
  const auto data = run("gguf", dir_ / "alpaca.json", {"--force"});
  EXPECT_EQ(data.exit_code, 2);
  expect_part(data.err, "is no GGUF file; --force does not replace it");
  EXPECT_EQ(read_file(dir_ / "alpaca.json"), "[]");
  ASSERT_EQ(::mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  const auto pipe = run("gguf", dir_ / "pipe", {"--force"});
  EXPECT_EQ(pipe.exit_code, 2);
  expect_part(pipe.err, "is a pipe or a device");
  EXPECT_EQ(fs::status(dir_ / "pipe").type(), fs::file_type::fifo);
}

TEST_F(ExportCommand, BytesAreThoseOnTheDisk) {
  for (const char* format : {"mlx", "safetensors", "gguf"}) {
    const auto outcome = run(format, dir_ / format, {"--json", "-q"});
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    uint64_t bytes = 0;
    if (fs::is_directory(dir_ / format)) {
      for (const auto& entry : fs::directory_iterator(dir_ / format)) bytes += entry.file_size();
    } else {
      bytes = fs::file_size(dir_ / format);
    }
    EXPECT_EQ(nlohmann::json::parse(outcome.out).at("bytes"), bytes) << format;
  }
}

TEST_F(ExportCommand, EveryRefusalNamesAWay) {
  const auto zeros = run("gptq", dir_ / "out");
  EXPECT_EQ(zeros.exit_code, 2);
  expect_part(zeros.err, "--to mlx");
  expect_part(zeros.err, "--integer-zeros");
  const auto adapter = run("lora", dir_ / "out");
  EXPECT_EQ(adapter.exit_code, 2);
  expect_part(adapter.err, "give it with --adapter");
  const auto format = run("mlz", dir_ / "out");
  EXPECT_EQ(format.exit_code, 2);
  expect_part(format.err, "did you mean 'mlx'");
  const auto option = run("safetensors", dir_ / "out", {"--dtype-of-weights", "float17"});
  EXPECT_EQ(option.exit_code, 2);
  expect_part(option.err, "did you mean 'float16'");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
}

TEST_F(ExportCommand, AnAdapterIsNamedInTheNextStep) {
  io::AdapterFile adapter = random_adapter(base_, io::Pooling::kSum, 0.05);
  for (auto& [module, weights] : adapter.modules) {  // more than the 16 that vLLM takes unasked
    weights = {at::constant_pad_nd(weights.a, {0, 0, 0, 16}), at::constant_pad_nd(weights.b, {0, 16}),
               adapter.config.scaling};
  }
  write_adapter_to(dir_ / "adapter", adapter);
  const std::string with = (dir_ / "adapter").string(), out = (dir_ / "v1.1").string();
  const auto lora = run("lora", dir_ / "lora", {"--adapter", with});
  ASSERT_EQ(lora.exit_code, 0) << lora.err;
  expect_part(lora.err, "--max-lora-rank 32 ");
  const auto both = run("gguf", out, {"--adapter", with});
  ASSERT_EQ(both.exit_code, 0) << both.err;
  expect_part(both.err, "note: the adapter goes into a file of its own");
  EXPECT_EQ(both.err.find("warning: the adapter"), std::string::npos) << both.err;
  expect_part(both.err, "wrote " + out + " and " + out + ".lora.gguf in ");
  expect_part(both.err, "llama-cli -m " + out + " -p TEXT --lora " + out + ".lora.gguf");
  const auto alone = run("gguf", dir_ / "alone.gguf");
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_EQ(alone.err.find("--lora"), std::string::npos) << alone.err;
}

TEST_F(ExportCommand, WithoutRoundingThereIsNoTableOfIt) {
  const auto outcome = run("mlx", dir_ / "out");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "nothing was rounded (28 tensors)\n");
}

// Bits are counted alike in every format; what a tokenizer lacks is said.
TEST_F(ExportCommand, InspectSaysWhatAnExportIs) {
  ASSERT_EQ(run("gguf", dir_ / "a.gguf").exit_code, 0);
  const auto outcome = run_qalora({"inspect", (dir_ / "a.gguf").string(), "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto gguf = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(gguf.at("format"), "GGUF");
  EXPECT_EQ(gguf.at("bits_per_weight"), 5.0);  // Q4_1: 20 bytes for 32 weights
  EXPECT_EQ(gguf.at("file_bytes"), fs::file_size(dir_ / "a.gguf"));
  EXPECT_EQ(gguf.at("tokenizer"), "SentencePiece, 1,024 tokens");
  const fs::path zeros = dir_ / "zeros", gptq = dir_ / "gptq";
  ASSERT_EQ(run_qalora({"quantize", "--model", (source_dir() / "models/miniature").string(), "--out", zeros.string(),
                        "--calibration", (source_dir() / "tests/data/miniature/tune.json").string(), "--samples", "2",
                        "--integer-zeros", "-q"})
                .exit_code,
            0);
  const auto made = run_qalora({"export", "--model", zeros.string(), "--to", "gptq", "--out", gptq.string(), "-q"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  const auto inspected = nlohmann::json::parse(run_qalora({"inspect", gptq.string(), "--json"}).out);
  expect_part(inspected.at("format"), "GPTQ v");
  expect_part(inspected.at("format"), ", 4 bits, groups of 32");
  EXPECT_EQ(inspected.at("bits_per_weight"), 4 + (16 + 4) / 32.0);  // scales in fp16, zero points in 4 bits
  EXPECT_EQ(inspected.at("file_bytes"), fs::file_size(gptq / "model.safetensors"));
  EXPECT_LE(inspected.at("bytes"), inspected.at("file_bytes"));
}

TEST_F(ExportCommand, InspectMissesTheTokenizer) {
  const std::string tokenizer = base_ + "/tokenizer.model";
  fs::copy_file(tokenizer, dir_ / "llama2.tokenizer.model");
  const auto named = run_qalora({"inspect", (dir_ / "llama2.tokenizer.model").string(), "--json"});
  ASSERT_EQ(named.exit_code, 0) << named.err;
  EXPECT_EQ(nlohmann::json::parse(named.out).at("vocab_size"), 1024);
  write_file(tokenizer, "");
  const auto empty = run_qalora({"inspect", base_});
  EXPECT_EQ(empty.exit_code, 0);
  expect_part(empty.err, "warning: no tokenizer: ");
  fs::remove(tokenizer);
  const auto none = run_qalora({"inspect", base_});
  EXPECT_EQ(none.exit_code, 0);
  expect_part(none.err, "warning: " + base_ + ": no tokenizer");
  expect_part(none.out, "tokenizer ");
}

TEST_F(ExportCommand, TheAdaptersFileReplacesNoInput) {
  ASSERT_EQ(run("gguf", dir_ / "a.lora.gguf").exit_code, 0);
  const std::string before = read_file(dir_ / "a.lora.gguf");
  write_adapter_to(dir_ / "adapter", random_adapter(dir_ / "a.lora.gguf", io::Pooling::kSum, 0.05));
  const auto outcome =
      run_qalora({"export", "--model", (dir_ / "a.lora.gguf").string(), "--adapter", (dir_ / "adapter").string(),
                  "--to", "gguf", "--out", (dir_ / "a.gguf").string(), "--force"});
  EXPECT_EQ(outcome.exit_code, 2);
  expect_part(outcome.err, "is the same place as the input");
  EXPECT_TRUE(read_file(dir_ / "a.lora.gguf") == before);
  EXPECT_FALSE(fs::exists(dir_ / "a.gguf"));
}

}  // namespace
}  // namespace qalora::test
