// Flags, outputs and answers of the real binary: what is refused, what survives, what --json holds, what inspect knows.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "qalora/io/safetensors.h"
#include "support/support.h"
#include "unit/model/random_checkpoint.h"

namespace qalora::test {
namespace {

using nlohmann::json;

std::string miniature() { return source_dir() / "models/miniature"; }
std::string data(const std::string& name) { return source_dir() / "tests/data/miniature" / name; }

Outcome run(std::vector<std::string> words) { return run_qalora(words); }

// The one JSON document of a command that must succeed.
json answer(std::vector<std::string> words) {
  words.insert(words.end(), {"--json", "-q", "--threads", "1"});
  const Outcome outcome = run_qalora(words);
  EXPECT_EQ(outcome.exit_code, 0) << words[0] << " " << words[1] << "\n" << outcome.err;
  return json::parse(outcome.out, nullptr, /*allow_exceptions=*/false);
}

void expect_error(const std::vector<std::string>& words, int code, const std::string& part) {
  const Outcome outcome = run_qalora(words);
  EXPECT_EQ(outcome.exit_code, code) << outcome.err;
  EXPECT_NE(outcome.err.find(part), std::string::npos) << "'" << part << "' is not in: " << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.err.find("internal error"), std::string::npos) << outcome.err;
}

class Cli : public ::testing::Test {
 protected:
  std::string at(const std::string& name) const { return dir_ / name; }
  std::vector<std::string> eval(const std::string& task, std::initializer_list<std::string> more,
                                const std::string& model = miniature()) const {
    std::vector<std::string> words = {"eval", "--model", model, "--task", task};
    words.insert(words.end(), more);
    return words;
  }
  TempDir dir_;
};

TEST_F(Cli, VersionNamesTheCommit) {
  const Outcome text = run({"--version"});
  const json version = json::parse(run({"--version", "--json"}).out);
  const std::string number = version.at("version"), commit = version.at("commit");
  EXPECT_EQ(text.out.rfind("qalora " + number + " (" + commit + ")", 0), 0u) << text.out;
  EXPECT_EQ(version.at("commit") == "unknown", !fs::exists(source_dir() / ".git")) << version;
}

TEST_F(Cli, VersionSaysWhatCudaCanDo) {
  const std::string text = run({"--version"}).out;
  const json version = json::parse(run({"--version", "--json"}).out), cuda = version.at("cuda");
  if (cuda.is_null()) {
    EXPECT_NE(text.find("\nCUDA not built: "), std::string::npos) << text;
  } else {
    EXPECT_NE(text.find("\nCUDA " + cuda.at("toolkit").get<std::string>() + " for "), std::string::npos) << text;
    EXPECT_FALSE(cuda.at("architectures").empty());
    EXPECT_EQ(cuda.at("devices").empty(), cuda.at("problem").is_string()) << cuda;
  }
  const bool usable = !cuda.is_null() && !cuda.at("devices").empty();
  EXPECT_EQ(version.at("default_device"), usable ? "cuda:0" : "cpu");
}

TEST_F(Cli, HelpIsOfTheCommand) {
  for (const char* command : {"quantize", "finetune", "merge", "export", "eval", "compare", "generate", "inspect"}) {
    const std::string help = run({command, "--help"}).out;
    EXPECT_NE(help.find(std::string("Usage: qalora ") + command), std::string::npos) << help;
    EXPECT_NE(help.find(std::string("Examples:\n  qalora ") + command), std::string::npos) << help;
    EXPECT_NE(help.find("--threads"), std::string::npos) << help;
  }
}

TEST_F(Cli, ConfigOfARunSurvivesItsNames) {
  ASSERT_EQ(run({"quantize", "--model", miniature(), "--out", at("int4"), "-q"}).exit_code, 0);
  fs::create_directories(dir_ / "dir#1 \"x\"");
  const std::string tune = at("dir#1 \"x\"/a\\b.json"), out = at("run#1");
  fs::copy_file(data("tune.json"), tune);
  const Outcome trained = run({"finetune", "--model", at("int4"), "--data", tune, "--out", out, "--steps", "2",
                               "--batch-size", "2", "--rank", "4", "--sequence-length", "128", "--packing", "-q"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const Outcome resumed = run({"finetune", "--config", out + "/config.toml", "--resume", "--steps", "3", "-q"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  const std::string dump = run({"finetune", "--config", out + "/config.toml", "--dump-config"}).out;
  EXPECT_EQ(dump, read_file(out + "/config.toml"));
  EXPECT_NE(dump.find("packing = true"), std::string::npos);
  EXPECT_EQ(answer({"inspect", out + "/config.toml"}).at("keys").at("data"), tune);
}

TEST_F(Cli, FlagsOfAnotherTaskAreRefused) {
  const std::string open = data("open.jsonl");
  expect_error(eval("choice", {"--data", open, "--protocol", "qlora"}), 2, "--protocol belongs to --task mmlu");
  expect_error(eval("choice", {"--data", open, "--shots", "1"}), 2, "--shots belongs to --task mmlu");
  expect_error(eval("choice", {"--data", open, "--context-length", "64"}), 2,
               "--context-length belongs to --task perplexity");
  expect_error(eval("perplexity", {"--data", data("heldout.txt"), "--details", at("x")}), 2,
               "--details belongs to --task mmlu and --task choice");
  expect_error(eval("mmlu", {"--data", data("mmlu"), "--protocol", "qlor"}), 2, "did you mean 'qlora'?");
  expect_error(eval("mmul", {"--data", data("mmlu")}), 2, "did you mean 'mmlu'?");
  expect_error(eval("mmlu", {"--data", data("mmlu"), "--shots", "99999999999999999999"}), 2,
               "--shots: expected a whole number");
  expect_error({"generate", "--model", miniature(), "--prompt", "x", "--temperature", "warm"}, 2,
               "--temperature: expected a number, got 'warm'");
  expect_error({"finetune", "--learning-rate", "fast"}, 2, "--learning-rate: expected a number, got 'fast'");
  expect_error({"generate", "--model", miniature(), "--prompt", "x", "--seed", "-1"}, 2,
               "--seed: expected a whole number, 0 or more");
  for (const char* flag : {"--samples", "--sequence-length", "--seed"}) {
    expect_error({"quantize", "--model", miniature(), "--out", at("q"), "--method", "rtn", flag, "5"}, 2,
                 std::string("--method rtn takes no ") + flag);
  }
}

// Everything that a file or a flag can be wrong about is said before the model is read: here there are no weights to
// read.
TEST_F(Cli, DataIsCheckedBeforeTheModel) {
  const std::string model = at("model");
  fs::create_directories(model);
  for (const std::string file : {"/config.json", "/tokenizer.model", "/tokenizer_config.json"}) {
    fs::copy_file(miniature() + file, model + file);
  }
  expect_error(eval("mmlu", {"--data", data("mmlu"), "--subjects", "beast"}, model), 2, "did you mean");
  fs::create_directories(dir_ / "mmlu");
  fs::copy(data("mmlu/test"), dir_ / "mmlu/test", fs::copy_options::recursive);
  expect_error(eval("mmlu", {"--data", at("mmlu")}, model), 3, "_dev.csv: missing");
  expect_error({"generate", "--model", model, "--prompt", "x", "--max-tokens", "0"}, 2, "--max-tokens");
  expect_error(eval("mmlu", {"--data", data("mmlu")}, model), 3, "no weights");  // and then it is the model's turn
  EXPECT_EQ(
      answer(eval("mmlu", {"--data", data("mmlu"), "--dry-run", "--limit", "1", "--shots", "0"}, model)).at("dry_run"),
      true);
}

TEST_F(Cli, LongNamesAreNoInternalErrors) {
  const std::string longest(300, 'x');
  expect_error(eval("choice", {"--data", longest}), 2, "too long");
  expect_error(eval("mmlu", {"--data", data("mmlu"), "--details", longest}), 5, "too long");
  expect_error({"compare", "--model", miniature(), "--other", miniature(), "--data", longest}, 2, "too long");
  expect_error({"inspect", longest}, 2, "too long");
}

TEST_F(Cli, OutputsAreCheckedBeforeTheRunAndNeverReplaceAnInput) {
  fs::copy(miniature(), dir_ / "model", fs::copy_options::recursive);
  const std::string open = data("open.jsonl"), config = read_file(dir_ / "model/config.json");
  expect_error(eval("choice", {"--data", open, "--details", at("nodir/x.jsonl")}), 5, "nodir");
  expect_error(eval("choice", {"--data", open, "--details", at("model/config.json"), "--force"}, at("model")), 2,
               "--details");
  expect_error(eval("choice", {"--data", open, "--details", at("model/new.jsonl")}, at("model")), 2, "inside");
  expect_error(eval("choice", {"--data", open, "--details", at("model")}), 2, "exists");
  expect_error(eval("choice", {"--data", open, "--details", at("model"), "--force"}), 2, "is a folder");
  EXPECT_EQ(read_file(dir_ / "model/config.json"), config);
  write_file(dir_ / "old.jsonl", "old");
  expect_error(eval("choice", {"--data", open, "--details", at("old.jsonl")}), 2, "--force");
  EXPECT_EQ(read_file(dir_ / "old.jsonl"), "old");
  answer(eval("choice", {"--data", open, "--details", at("old.jsonl"), "--force", "--limit", "3"}));
  EXPECT_EQ(answer({"inspect", at("old.jsonl")}).at("questions"), 3);
}

TEST_F(Cli, TheResultOutlivesItsDetails) {
  if (!fs::exists("/bin/bash")) GTEST_SKIP() << "no bash to set a file-size limit with";
  // No file may grow beyond 1 KiB: the program can open the details, but not write them. Its stdout is a pipe.
  const std::string command = std::string("ulimit -f 1; ") + QALORA_BINARY + " eval --model " + miniature() +
                              " --task choice --data " + data("open.jsonl") + " --limit 50 --json -q --details " +
                              at("details.jsonl") + " 2> /dev/null | head -c 1000; exit ${PIPESTATUS[0]}";
  const int status = std::system(("/bin/bash -c '" + command + "' > " + at("stdout")).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 5);
  EXPECT_EQ(json::parse(read_file(dir_ / "stdout")).at("questions"), 50);
  EXPECT_FALSE(fs::exists(dir_ / "details.jsonl"));
}

TEST_F(Cli, AStopIsAnsweredAtOnceAndSaysWhatIsLeft) {
  if (!fs::exists("/bin/bash")) GTEST_SKIP() << "no bash to stop a command with";
  // The program waits for what stands in a pipe, so it is known where the signal meets it.
  const std::string command = "mkfifo pipe; " QALORA_BINARY
                              " finetune --config pipe 2> said & exec 3> pipe; "
                              "kill -INT $!; sleep 0.2; exec 3>&-; wait $!";
  const int status = std::system(("cd " + dir_.path().string() + " && /bin/bash -c '" + command + "'").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 130);
  EXPECT_EQ(read_file(dir_ / "said"),
            "stopping, as soon as what can be continued is saved; Ctrl-C again stops at once and loses it\n"
            "stopped; nothing was written\n");
}

TEST_F(Cli, NamesThatAreNotUtf8) {
  const std::string name = std::string("bad") + "\xff\xfe";
  for (const char* part : {"test", "dev"}) {
    fs::create_directories(dir_ / "mmlu" / part);
    fs::copy_file(data("mmlu/" + std::string(part) + "/beasts_" + part + ".csv"),
                  dir_ / "mmlu" / part / (name + "_" + part + ".csv"));
  }
  const json scored =
      answer(eval("mmlu", {"--data", at("mmlu"), "--limit", "2", "--shots", "0", "--details", at("d.jsonl")}));
  EXPECT_TRUE(scored.at("subjects").contains("bad\xEF\xBF\xBD\xEF\xBF\xBD")) << scored;
  write_file(dir_ / (name + ".toml"), "data = \"" + name + "\"\n");
  EXPECT_EQ(answer({"inspect", at(name + ".toml")}).at("keys").at("data"), "bad\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(run({"inspect", at(name + ".toml")}).exit_code, 0);
}

TEST_F(Cli, MergeProvesOnTheDataThatWasNamed) {
  write_random_dense(dir_ / "dense");
  quantize_to(dir_ / "dense", dir_ / "int4", 4, 32);
  write_adapter_to(dir_ / "adapter", random_adapter(dir_ / "int4", io::Pooling::kSum, 0.02));
  const std::vector<std::string> merge = {"merge",       "--model", at("int4"), "--adapter",
                                          at("adapter"), "--out",   at("out")};
  const auto with = [&](std::initializer_list<std::string> more) {
    std::vector<std::string> words = merge;
    words.insert(words.end(), more);
    return words;
  };
  expect_error(with({"--data", at("nowhere.json")}), 2, "--data");
  write_file(dir_ / "broken.json", "[{]");
  expect_error(with({"--data", at("broken.json")}), 3, "broken.json");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  write_file(dir_ / "ids.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
  EXPECT_NE(answer(with({"--data", at("ids.jsonl")})).at("tokens_from").get<std::string>().find("ids.jsonl"),
            std::string::npos);
  EXPECT_NE(run(with({"--force", "--dtype", "bfloat16"})).err.find("--dtype has no effect"), std::string::npos);
}

// An adapter so large that squares overflow in the norms: every logit is 0 or NaN, so nothing can be shown to be equal.
TEST_F(Cli, AMergeThatDoesNotVerifyWritesNothing) {
  write_random_dense(dir_ / "dense");
  quantize_to(dir_ / "dense", dir_ / "int4", 4, 32);
  for (const double size : {1e15, 1e18}) {
    write_adapter_to(dir_ / "adapter", random_adapter(dir_ / "int4", io::Pooling::kSum, size));
    expect_error({"merge", "--model", at("int4"), "--adapter", at("adapter"), "--out", at("out")}, 7, "not written");
    EXPECT_FALSE(fs::exists(dir_ / "out"));
    fs::remove_all(dir_ / "adapter");
  }
  for (const auto& entry : fs::directory_iterator(dir_.path()))
    EXPECT_NE(entry.path().filename().string().rfind("out", 0), 0u);
}

TEST_F(Cli, AnswersHaveTheirKeys) {
  const auto expect_keys = [](const json& document, std::initializer_list<const char*> keys) {
    for (const char* key : keys) EXPECT_TRUE(document.contains(key)) << key << " is not in " << document;
  };
  const json generated = answer(
      {"generate", "--model", miniature(), "--prompt", "The coat of", "--max-tokens", "4", "--dtype", "float32"});
  expect_keys(generated, {"prompt", "text", "tokens", "stop", "prefill_tokens_per_second", "tokens_per_second"});
  EXPECT_EQ(generated.at("tokens"), 4);
  EXPECT_EQ(generated.at("text").get<std::string>().substr(0, 1), " ");  // prompt + text reads on
  const json same = answer({"compare", "--model", miniature(), "--other", miniature(), "--data", data("heldout.txt"),
                            "--limit", "1", "--dtype", "float32"});
  expect_keys(same, {"kl_mean", "kl_max", "top1_agreement", "max_logit_difference", "perplexity", "other_perplexity",
                     "tokens"});
  EXPECT_EQ(same.at("top1_agreement"), 1.0);
  const json perplexity =
      answer(eval("perplexity", {"--data", data("heldout.txt"), "--limit", "1", "--dtype", "float32"}));
  expect_keys(perplexity, {"task", "tokens", "nll", "perplexity", "dtype"});
  // Two ways to take the logarithm of a sum of f32: a few roundings of 2^-24 apart.
  EXPECT_NEAR(perplexity.at("perplexity").get<double>() / same.at("perplexity").get<double>(), 1, 1e-6);
  const json scored = answer(
      eval("mmlu", {"--data", data("mmlu"), "--split", "val", "--limit", "1", "--shots", "0", "--dtype", "float32"}));
  expect_keys(scored, {"task", "protocol", "shots", "questions", "accuracy", "categories", "subjects", "seconds",
                       "tokens_per_second"});
  EXPECT_EQ(scored.at("split"), "val");
  EXPECT_EQ(scored.at("bos"), true);
  EXPECT_EQ(scored.at("dtype"), "float32");
}

TEST_F(Cli, SamplingFlagsSample) {
  const auto text = [](std::initializer_list<std::string> more) {
    std::vector<std::string> words = {"generate",     "--model", miniature(), "--prompt", "The",
                                      "--max-tokens", "12",      "--seed",    "3"};
    words.insert(words.end(), more);
    return answer(words).at("text").get<std::string>();
  };
  EXPECT_EQ(text({"--top-p", "0.95"}), text({"--top-p", "0.95", "--temperature", "1"}));
  EXPECT_NE(text({"--top-p", "0.95"}), text({}));
  EXPECT_EQ(text({"--top-p", "0.95", "--temperature", "0"}), text({}));
  const Outcome useless = run({"generate", "--model", miniature(), "--prompt", "The", "--max-tokens", "1", "--top-k",
                               "5", "--temperature", "0"});
  EXPECT_NE(useless.err.find("no effect"), std::string::npos) << useless.err;
}

TEST_F(Cli, InspectKnowsWhatTheProgramWritesAndReads) {
  const std::string ids = at("ids.json");
  write_file(ids, "[[1, 2, 3],\n [4, 5, 6]]");
  write_file(dir_ / "choice.jsonl",
             json({{"context", std::string(1000, 'c')}, {"choices", {"b", "c"}}, {"answer", 0}}).dump() + "\n");
  write_file(dir_ / "text.jsonl", "{\"text\": \"some text\"}\n");
  write_file(dir_ / "loss.svg", "<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>");
  write_file(dir_ / "mmlu.json", R"({"subject":"anatomy","input":"x?\nAnswer:","output":"C"})"
                                 "\n");
  answer(eval("mmlu", {"--data", data("mmlu"), "--limit", "1", "--shots", "0", "--details", at("mmlu.jsonl")}));
  answer(eval("perplexity", {"--token-ids", ids, "--limit", "1", "--save-logits", at("logits.safetensors")}));
  const auto kind = [](const std::string& path) { return answer({"inspect", path}).value("kind", ""); };
  EXPECT_EQ(kind(at("mmlu.jsonl")), "answers");
  EXPECT_EQ(kind(at("loss.svg")), "picture");
  write_file(dir_ / "run.log", "2025-01-31 23:59:59  one\n2025-02-01 00:00:00  two\n");
  EXPECT_EQ(answer({"inspect", at("run.log")}).at("lines"), 2);
  EXPECT_EQ(answer({"inspect", at("run.log")}).at("last"), "2025-02-01 00:00:00");
  EXPECT_EQ(kind(miniature() + "/tokenizer_config.json"), "tokenizer configuration");
  EXPECT_EQ(kind(miniature() + "/generation_config.json"), "generation configuration");
  EXPECT_EQ(kind(data("mmlu/test/beasts_test.csv")), "mmlu questions");
  EXPECT_EQ(kind(at("mmlu.json")), "mmlu questions");
  EXPECT_EQ(kind(at("choice.jsonl")), "multiple choice");
  EXPECT_EQ(kind(at("text.jsonl")), "data set");
  EXPECT_EQ(kind(data("tune.json")), "data set");
  EXPECT_EQ(answer({"inspect", ids}).at("rows"), 2);
  EXPECT_EQ(answer({"inspect", ids}).at("largest_id"), 6);
  EXPECT_EQ(answer({"inspect", at("logits.safetensors")}).at("tensors")[0].at("shape"), (std::vector<int>{1, 3, 1024}));
  EXPECT_EQ(answer({"inspect", data("mmlu")}).at("kind"), "mmlu");
  // A folder with fewer worked examples than a default run would want is still what it is.
  fs::copy(data("mmlu"), dir_ / "few", fs::copy_options::recursive);
  for (const auto& entry : fs::directory_iterator(dir_ / "few/dev")) write_file(entry.path(), "q,a,b,c,d,A\n");
  EXPECT_GT(answer({"inspect", at("few")}).at("questions"), 0);
  for (const std::string& path : {at("mmlu.jsonl"), ids, miniature() + "/tokenizer_config.json", data("mmlu")}) {
    EXPECT_EQ(run({"inspect", path}).exit_code, 0) << path;
  }
}

TEST_F(Cli, LogitsOfTokenIdsAreTransformersOwn) {
  REQUIRE_SHARED("goldens/llama/mha/expected.safetensors");
  for (const auto& [name, tolerance] : {std::pair{"mha", 6.6e-5}, std::pair{"gqa_tied", 7.2e-5}}) {
    const fs::path folder = shared_dir() / "goldens/llama" / name;
    const io::SafetensorsFile golden(folder / "expected.safetensors");
    const at::Tensor ids = golden.read("input_ids").contiguous();  // [rows, tokens] i64
    json rows = json::array();
    for (int64_t row = 0; row < ids.size(0); ++row) {
      const int64_t* begin = ids.data_ptr<int64_t>() + row * ids.size(1);
      rows.push_back(std::vector<int64_t>(begin, begin + ids.size(1)));
    }
    write_file(dir_ / "ids.json", rows.dump());
    const std::string out = at(std::string(name) + ".safetensors");
    const json result =
        answer(eval("perplexity", {"--token-ids", at("ids.json"), "--save-logits", out, "--dtype", "float32"}, folder));
    const at::Tensor logits = io::SafetensorsFile(out).read("logits");
    EXPECT_LE((logits - golden.read("logits")).abs().max().item<double>(), tolerance);
    EXPECT_GT((logits - golden.read("logits").flip(0)).abs().max().item<double>(),
              1e-2);  // must differ: the rows exchanged
    EXPECT_NEAR(result.at("nll").get<double>(), golden.read("token_nll").mean().item<double>(), 5e-5);
  }
}

// The real question files. The miniature reads 512 tokens and writes their words in small pieces: subjects whose
// questions fit.
TEST_F(Cli, RealQuestionsInEveryProtocol) {
  REQUIRE_SHARED("data/mmlu/test/abstract_algebra_test.csv");
  const std::string mmlu = shared_dir() / "data/mmlu";
  for (const char* protocol : {"hendrycks", "qlora", "lm-eval"}) {
    const json result = answer(eval("mmlu", {"--data", mmlu, "--protocol", protocol, "--subjects",
                                             "global_facts,abstract_algebra", "--limit", "4", "--shots", "1"}));
    EXPECT_EQ(result.at("questions"), 8) << protocol;
    EXPECT_EQ(result.at("protocol"), protocol);
    EXPECT_TRUE(result.at("categories").at("stem").is_number());
    EXPECT_TRUE(result.at("categories").at("humanities").is_null());
    EXPECT_EQ(result.at("subjects").at("global_facts").at("questions"), 4);
  }
  REQUIRE_SHARED("data/mmlu/zero_shot_mmlu_val.json");
  const json file = answer(eval("mmlu", {"--data", mmlu + "/zero_shot_mmlu_val.json", "--protocol", "qlora",
                                         "--subjects", "global_facts", "--limit", "4"}));
  EXPECT_EQ(file.at("split"), "file");
  EXPECT_EQ(file.at("questions"), 4);
}

}  // namespace
}  // namespace qalora::test
