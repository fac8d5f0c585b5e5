// Broken files and wrong commands: one clear sentence, the documented exit code, and nothing lost or left behind.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/support.h"

namespace qalora::test {
namespace {

using nlohmann::json;

fs::path miniature() { return source_dir() / "models/miniature"; }
fs::path data(const std::string& name) { return source_dir() / "tests/data/miniature" / name; }

// The command ends with this code and a message that contains all these words.
void expect_error(const std::vector<std::string>& arguments, int code, const std::vector<std::string>& words) {
  const Outcome run = run_qalora(arguments);
  std::string command;
  for (const std::string& argument : arguments) command += argument + " ";
  EXPECT_EQ(run.exit_code, code) << command << "\n" << run.err;
  EXPECT_EQ(run.err.rfind("error: ", 0), 0u) << command << "\n" << run.err;
  EXPECT_TRUE(run.out.empty()) << run.out;
  for (const std::string& word : words)
    EXPECT_NE(run.err.find(word), std::string::npos) << command << "\nlacks '" << word << "': " << run.err;
  EXPECT_EQ(run.err.find("internal error"), std::string::npos) << run.err;
}

// A copy of the miniature that a test may damage.
class BadInput : public ::testing::Test {
 protected:
  void SetUp() override { fs::copy(miniature(), dir_ / "model", fs::copy_options::recursive); }
  std::string model() const { return dir_ / "model"; }

  void edit_config(const std::string& key, const json& value) {
    json config = json::parse(read_file(dir_ / "model/config.json"));
    config[key] = value;
    write_file(dir_ / "model/config.json", config.dump());
  }

  // The model is refused by quantize, which leaves no output.
  void expect_refused(int code, const std::vector<std::string>& words) {
    expect_error({"quantize", "--model", model(), "--out", dir_ / "out"}, code, words);
    EXPECT_FALSE(fs::exists(dir_ / "out"));
    for (const auto& entry : fs::directory_iterator(dir_.path())) EXPECT_EQ(entry.path().filename(), "model");
  }

  TempDir dir_;
};

TEST_F(BadInput, CommandsAndFlags) {
  expect_error({"quantise", "--model", "x"}, 2, {"quantise", "quantize"});
  expect_error({"quantize", "--modell", "x"}, 2, {"--modell", "--model"});
  expect_error({"quantize", "--model", model()}, 2, {"--out"});
  expect_error({"quantize", "--model", model(), "--out", dir_ / "out", "--bits", "5"}, 2, {"5"});
  expect_error({"quantize", "--model", dir_ / "nowhere", "--out", dir_ / "out"}, 2, {"nowhere"});
  expect_error({"eval", "--model", model(), "--task", "mmlu", "--data", data("mmlu"), "--device", "cuda:99"}, 2,
               {"device 'cuda:99'"});
  EXPECT_EQ(run_qalora({}).exit_code, 2);
  EXPECT_EQ(run_qalora({"--help"}).exit_code, 0);
}

TEST_F(BadInput, ConfigJson) {
  edit_config("hidden_size", int64_t{1} << 60);
  expect_refused(3, {"config.json", "hidden_size", "1152921504606846976"});
  edit_config("hidden_size", 64);
  edit_config("hidden_act", "gelu");
  expect_refused(3, {"hidden_act", "gelu"});
  edit_config("hidden_act", "silu");
  edit_config("model_type", "gpt2");
  expect_refused(3, {"model_type", "gpt2"});
  edit_config("model_type", "llama");
  edit_config("attn_scale_of_tomorrow", 3);
  expect_refused(3, {"attn_scale_of_tomorrow"});
  write_file(dir_ / "model/config.json", "{\"model_type\": ");
  expect_refused(3, {"config.json"});
}

// A pickle that would run code, a damaged archive, what only looks like weights: exit code 3 and a sentence; a good one
// is read.
TEST_F(BadInput, PyTorchFiles) {
  const fs::path file = dir_ / "model/pytorch_model.bin", made = source_dir() / "tests/data/torch";
  fs::remove(dir_ / "model/model.safetensors");
  const auto put = [&](const std::string& content) { write_file(file, content); };
  put(read_file(made / "whole_module.pt"));
  expect_refused(3,
                 {"pytorch_model.bin", "asks for torch.nn.modules.linear.Linear", "nothing in the file was executed"});
  const std::string good = read_file(made / "module.pt");
  put(good.substr(0, good.size() / 2));
  expect_refused(3, {"pytorch_model.bin", "incomplete download"});
  put(read_file(made / "deflated.pt"));
  expect_refused(3, {"pytorch_model.bin", "compressed"});
  put("version https://git-lfs.github.com/spec/v1\n");
  expect_refused(3, {"pytorch_model.bin", "git lfs pull"});
  put(good);  // a state_dict, but not of this model
  expect_refused(3, {"weight"});
  for (const char* name : {"zip.pt", "legacy.pt"}) {
    const Outcome run = run_qalora({"inspect", made / name, "--json"});
    ASSERT_EQ(run.exit_code, 0) << run.err;
    const json document = json::parse(run.out);
    EXPECT_EQ(document.at("kind"), "pytorch");
    EXPECT_EQ(document.at("tensors").size(), 15u);
  }
  expect_error({"inspect", made / "whole_module.pt"}, 3, {"whole_module.pt", "torch.nn.modules.linear.Linear"});
}

TEST_F(BadInput, Weights) {
  const fs::path file = dir_ / "model/model.safetensors";
  const std::string good = read_file(file);
  write_file(file, good.substr(0, good.size() / 2));
  expect_refused(3, {"model.safetensors"});
  write_file(file, good + "x");
  expect_refused(3, {"model.safetensors"});
  write_file(file, good.substr(0, 5));
  expect_refused(3, {"model.safetensors"});
  std::string nan = good;
  nan[nan.size() - 1] = '\x7f';  // the last fp16 number becomes a NaN
  nan[nan.size() - 2] = '\x01';
  write_file(file, nan);
  const Outcome run = run_qalora({"eval", "--model", model(), "--task", "perplexity", "--data", data("heldout.txt")});
  EXPECT_EQ(run.exit_code, 3) << run.err;
  EXPECT_NE(run.err.find("NaN"), std::string::npos) << run.err;
  fs::remove(file);
  expect_refused(3, {"model"});
  fs::create_directory(file);
  expect_refused(3, {"model.safetensors"});
}

// What a flag names is the caller's mistake, what is missing inside a folder the folder's.
TEST_F(BadInput, MissingFilesAndFoldersInTheirPlace) {
  const auto generate = [&](const std::string& flag, const fs::path& file) {
    return std::vector<std::string>{"generate", "--model", model(), flag, file};
  };
  expect_error(generate("--prompt-file", dir_.path()), 2, {"--prompt-file", "is a folder, expected a file"});
  expect_error(generate("--prompt-file", dir_ / "nowhere"), 2, {"no such file"});
  expect_error({"finetune", "--config", dir_.path(), "--model", model()}, 2, {"--config", "is a folder"});
  expect_error({"eval", "--model", model(), "--task", "choice", "--data", dir_.path()}, 2, {"--data", "is a folder"});
  expect_error({"eval", "--model", dir_ / "model/config.json", "--task", "choice", "--data", data("open.jsonl")}, 2,
               {"is a file, expected a folder"});
  fs::remove(dir_ / "model/config.json");
  expect_error(generate("--prompt", "x"), 3, {"config.json"});
  expect_error({"inspect", model()}, 3, {"config.json"});
}

TEST_F(BadInput, GenerateSaysWhatEndedIt) {
  const auto ended = [&](const char* tokens) {
    const Outcome run = run_qalora({"generate", "--model", model(), "--prompt", "The", "--max-tokens", tokens});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return run.err;
  };
  EXPECT_NE(ended("1").find(" 1 token at "), std::string::npos);
  EXPECT_NE(ended("1").find("ended by --max-tokens"), std::string::npos);
}

TEST_F(BadInput, WrongShapeNamesTheTensor) {
  edit_config("intermediate_size", 200);
  expect_refused(3, {"mlp.gate_proj.weight", "200"});
}

TEST_F(BadInput, IndexNamingAMissingShard) {
  fs::rename(dir_ / "model/model.safetensors", dir_ / "model/model-00001-of-00002.safetensors");
  write_file(dir_ / "model/model.safetensors.index.json",
             R"({"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})");
  expect_refused(3, {"model-00002-of-00002.safetensors"});
}

TEST_F(BadInput, TokenizerLargerThanTheEmbedding) {
  const Outcome run = run_qalora({"finetune", "--model", model(), "--data", data("tune.json"), "--out", dir_ / "run",
                                  "--method", "lora", "--dry-run", "--sequence-length", "128"});
  EXPECT_EQ(run.exit_code, 0) << run.err;  // as it is it fits
  edit_config("vocab_size", 300);
  expect_error({"finetune", "--model", model(), "--data", data("tune.json"), "--out", dir_ / "run", "--method", "lora",
                "--sequence-length", "128"},
               3, {"300", "1024"});
}

TEST_F(BadInput, TrainingData) {
  const auto finetune = [&](const fs::path& file) {
    return std::vector<std::string>{"finetune", "--model",    model(),    "--data", file,
                                    "--out",    dir_ / "run", "--method", "lora",   "--sequence-length",
                                    "128"};
  };
  write_file(dir_ / "empty.json", "");
  expect_error(finetune(dir_ / "empty.json"), 3, {"empty.json"});
  write_file(dir_ / "typed.jsonl",
             "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"a\", \"output\": 5}\n");
  expect_error(finetune(dir_ / "typed.jsonl"), 3, {"typed.jsonl:2", "output"});
  expect_error(finetune(dir_ / "nowhere.json"), 2, {"nowhere.json"});
  expect_error(finetune(dir_.path()), 2, {"--data", "is a folder, expected a file"});
  write_file(dir_ / "ids.jsonl", "{\"input_ids\": [1, 99999], \"labels\": [1, 99999]}\n");
  expect_error(finetune(dir_ / "ids.jsonl"), 3, {"ids.jsonl:1", "99999"});
  EXPECT_FALSE(fs::exists(dir_ / "run"));
  const Outcome skipping =
      run_qalora({"finetune", "--model", model(), "--data", dir_ / "typed.jsonl", "--method", "lora",
                  "--sequence-length", "128", "--skip-bad-records", "true", "--dry-run", "--json"});
  ASSERT_EQ(skipping.exit_code, 0) << skipping.err;
  EXPECT_EQ(json::parse(skipping.out).at("bad_records"), 1);
}

TEST_F(BadInput, ConfigFileKeys) {
  write_file(dir_ / "typo.toml", "learning_rat = 1e-3\n");
  expect_error({"finetune", "--config", dir_ / "typo.toml", "--model", model()}, 2,
               {"typo.toml", "learning_rat", "learning_rate"});
  write_file(dir_ / "value.toml", "steps = \"many\"\n");
  expect_error({"finetune", "--config", dir_ / "value.toml", "--model", model()}, 2, {"value.toml", "steps", "many"});
  expect_error({"finetune", "--model", model(), "--data", data("tune.json"), "--out", dir_ / "run", "--schedule",
                "linaer", "--rank", "0"},
               2, {"linaer", "linear", "rank is 0"});
  expect_error(
      {"finetune", "--model", model(), "--data", data("tune.json"), "--out", dir_ / "run", "--sequence-length", "128"},
      2, {"quantize"});
}

TEST_F(BadInput, OutputsThatExistStay) {
  write_file(dir_ / "out/keep.txt", "precious");
  expect_error({"quantize", "--model", model(), "--out", dir_ / "out"}, 2, {"exists", "--force"});
  EXPECT_EQ(read_file(dir_ / "out/keep.txt"), "precious");
  expect_error({"quantize", "--model", model(), "--out", model(), "--force"}, 2, {"same place"});
  EXPECT_TRUE(fs::exists(dir_ / "model/model.safetensors"));
}

TEST_F(BadInput, FullDiskLeavesNothing) {
  if (!fs::exists("/bin/bash")) GTEST_SKIP() << "no bash to set a file-size limit with";
  // A limit on file sizes is the same error to the program as a full disk.
  const std::string command = std::string("ulimit -f 100; ") + QALORA_BINARY + " quantize --model " + model() +
                              " --out " + (dir_ / "out").string() + " 2> " + (dir_ / "err").string();
  const int status = std::system(("/bin/bash -c '" + command + "'").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 5) << read_file(dir_ / "err");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
}

TEST_F(BadInput, AdaptersOfAnotherBase) {
  for (const char* bits : {"4", "3"}) {
    ASSERT_EQ(
        run_qalora({"quantize", "--model", model(), "--out", dir_ / ("int" + std::string(bits)), "--bits", bits, "-q"})
            .exit_code,
        0);
  }
  const Outcome trained =
      run_qalora({"finetune", "--model", dir_ / "int4", "--data", data("tune.json"), "--out", dir_ / "run", "--steps",
                  "2", "--batch-size", "2", "--rank", "4", "--sequence-length", "128", "-q"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  expect_error({"merge", "--model", dir_ / "int3", "--adapter", dir_ / "run", "--out", dir_ / "merged"}, 3,
               {"fingerprint"});
  expect_error({"merge", "--model", model(), "--adapter", dir_ / "run", "--out", dir_ / "merged"}, 2, {"dense"});
  EXPECT_FALSE(fs::exists(dir_ / "merged"));
  expect_error({"finetune", "--model", dir_ / "int4", "--data", data("tune.json"), "--out", dir_ / "run",
                "--sequence-length", "128"},
               2, {"--resume"});
}

TEST_F(BadInput, AnArrayWhereLinesAreExpectedIsCalledThat) {
  for (const char* task : {"perplexity", "choice"}) {
    expect_error({"eval", "--model", model(), "--task", task, "--data", data("tune.json")}, 3,
                 {"tune.json:1", "JSON array", "one object a line"});
  }
}

}  // namespace
}  // namespace qalora::test
