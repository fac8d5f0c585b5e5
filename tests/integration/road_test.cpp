// The whole road with the real binary on the miniature: what a user types, what must come out.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "qalora/core/file.h"
#include "support/support.h"

namespace qalora::test {
namespace {

using nlohmann::json;

fs::path data(const std::string& name) { return source_dir() / "tests/data/miniature" / name; }

std::string digest(const fs::path& path) {
  const std::string bytes = read_file(path);
  return sha256(std::as_bytes(std::span(bytes)));
}

// One quantised miniature for all tests of this program.
class Road : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir();
    const Outcome run = run_qalora({"quantize", "--model", (source_dir() / "models/miniature").string(), "--out",
                                    (*dir_ / "int2"), "--bits", "2", "--json"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    quantized_ = json::parse(run.out);
  }
  static void TearDownTestSuite() { delete dir_; }

  static std::string base() { return (*dir_ / "int2").string(); }

  static std::vector<std::string> finetune(const fs::path& out, const std::vector<std::string>& more) {
    std::vector<std::string> words = {"finetune",
                                      "--config",
                                      (source_dir() / "configs/tiny/finetune.toml").string(),
                                      "--model",
                                      base(),
                                      "--data",
                                      data("tune.json").string(),
                                      "--out",
                                      out.string(),
                                      "--batch-size",
                                      "4",
                                      "--micro-batch-size",
                                      "2",
                                      "--dropout",
                                      "0.1",
                                      "--json",
                                      "-q"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  static TempDir* dir_;
  static json quantized_;
};

TempDir* Road::dir_ = nullptr;
json Road::quantized_;

std::vector<json> lines(const std::string& text) {
  std::vector<json> result;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) result.push_back(json::parse(line));
  return result;
}

TEST_F(Road, QuantizeSaysWhatItDid) {
  EXPECT_EQ(quantized_.at("bits"), 2);
  EXPECT_EQ(quantized_.at("group_size"), 32);
  EXPECT_EQ(quantized_.at("method"), "rtn");
  EXPECT_EQ(quantized_.at("layers").size(), 28u);
  EXPECT_TRUE(quantized_.at("layers")[0].at("loss").is_null());
  EXPECT_GT(quantized_.at("layers")[0].at("error").get<double>(), 0.05);  // two bits do lose something
  EXPECT_DOUBLE_EQ(quantized_.at("bits_per_weight").get<double>(),
                   2 + 2 * 32.0 / 32);  // an fp32 scale and offset a group of 32
}

TEST_F(Road, TunedAndMergedAnswerAlike) {
  const fs::path run_folder = *dir_ / "run", merged = *dir_ / "merged";
  const Outcome run = run_qalora(finetune(run_folder, {"--steps", "12", "--log-interval", "5"}));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const std::vector<json> events = lines(run.out);
  EXPECT_EQ(events.front().at("event"), "start");
  EXPECT_EQ(events.back().at("event"), "end");
  std::vector<int> steps;
  for (const json& event : events) {
    if (event.at("event") != "step") continue;
    steps.push_back(event.at("step"));
    for (const char* key : {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds"})
      EXPECT_TRUE(event.contains(key)) << key;
  }
  EXPECT_EQ(steps, (std::vector<int>{5, 10, 12}));
  EXPECT_EQ(lines(read_file(run_folder / "metrics.jsonl")).size(), 4u);  // three steps and the checkpoint
  EXPECT_NE(read_file(run_folder / "loss.svg").find("<svg"), std::string::npos);

  const Outcome merge =
      run_qalora({"merge", "--model", base(), "--adapter", run_folder, "--out", merged, "--json", "-q"});
  ASSERT_EQ(merge.exit_code, 0) << merge.err;
  const json proof = json::parse(merge.out);
  EXPECT_EQ(proof.at("verified"), true);
  EXPECT_EQ(proof.at("code_bytes_changed"), 0);
  EXPECT_EQ(proof.at("scale_bytes_changed"), 0);
  EXPECT_GT(proof.at("offset_bytes_changed"), 0);
  EXPECT_LE(proof.at("max_logit_difference").get<double>(), proof.at("tolerance").get<double>());

  const auto answers = [&](const std::vector<std::string>& model, const std::string& name) {
    std::vector<std::string> words = {"eval",      "--task",     "choice",  "--data", data("open.jsonl"),
                                      "--details", *dir_ / name, "--force", "--json", "-q"};
    words.insert(words.end(), model.begin(), model.end());
    const Outcome eval = run_qalora(words);
    EXPECT_EQ(eval.exit_code, 0) << eval.err;
    std::vector<int> predictions;
    for (const json& line : lines(read_file(*dir_ / name))) predictions.push_back(line.at("prediction").get<int>());
    return predictions;
  };
  const auto tuned = answers({"--model", base(), "--adapter", run_folder}, "tuned.jsonl");
  EXPECT_EQ(tuned, answers({"--model", merged}, "merged.jsonl"));
  EXPECT_NE(tuned, answers({"--model", base()}, "base.jsonl"));  // must differ: the adapter does something
}

TEST_F(Road, ConfigOfARunRepeatsIt) {
  const fs::path first = *dir_ / "first", again = *dir_ / "again";
  ASSERT_EQ(run_qalora(finetune(first, {"--steps", "2"})).exit_code, 0);
  const Outcome repeat = run_qalora({"finetune", "--config", first / "config.toml", "--out", again, "-q"});
  ASSERT_EQ(repeat.exit_code, 0) << repeat.err;
  EXPECT_EQ(digest(first / "adapter/adapter_model.safetensors"), digest(again / "adapter/adapter_model.safetensors"));
  const Outcome dump = run_qalora({"finetune", "--config", first / "config.toml", "--dump-config"});
  EXPECT_EQ(dump.out, read_file(first / "config.toml"));
}

TEST_F(Road, ScoresDoNotDependOnTheBatchSize) {
  const auto details = [&](const std::string& tokens) {
    const fs::path file = *dir_ / ("batch" + tokens + ".jsonl");
    const Outcome run = run_qalora({"eval", "--model", base(), "--task", "mmlu", "--data", data("mmlu"), "--shots", "2",
                                    "--limit", "6", "--batch-tokens", tokens, "--details", file, "-q"});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return read_file(file);
  };
  EXPECT_EQ(details("16"), details("4096"));  // to the last digit that is printed
}

TEST_F(Road, PackingEqualsPaddingUpToRounding) {
  // One step over the same two examples, a row each or both in one: the sums are the same.
  const auto loss = [&](const fs::path& out, const std::vector<std::string>& more) {
    std::vector<std::string> words = {"--steps", "1", "--shuffle", "false", "--dropout", "0", "--log-interval", "1"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome run = run_qalora(finetune(out, words));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    for (const json& event : lines(run.out)) {
      if (event.at("event") == "step") return event;
    }
    return json();
  };
  const fs::path few = *dir_ / "few.json";
  json records = json::parse(read_file(data("tune.json")));
  records.erase(records.begin() + 2, records.end());
  write_file(few, records.dump());
  const json padded = loss(*dir_ / "padded", {"--data", few.string(), "--batch-size", "2", "--micro-batch-size", "2",
                                              "--sequence-length", "256"});
  const json packed = loss(*dir_ / "packed", {"--data", few.string(), "--batch-size", "1", "--micro-batch-size", "1",
                                              "--sequence-length", "256", "--packing", "true"});
  // Means of about a hundred f32 losses of size 2, summed in another order: 100 roundings of 2^-24 at most.
  EXPECT_NEAR(padded.at("loss").get<double>(), packed.at("loss").get<double>(), 1e-6 * 10);
  EXPECT_NEAR(padded.at("grad_norm").get<double>() / packed.at("grad_norm").get<double>(), 1.0, 1e-4);
  EXPECT_EQ(padded.at("tokens"), packed.at("tokens"));
}

}  // namespace
}  // namespace qalora::test
