// GPTQ as a person runs it: the kept miniature model, calibrated on its tuning data.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "support/support.h"

namespace qalora::test {
namespace {

using Json = nlohmann::json;

class Gptq : public ::testing::Test {
 protected:
  std::vector<std::string> words(const std::string& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> all = {"quantize", "--model",       source_dir() / "models/miniature",
                                    "--out",    dir_ / out,      "--bits",
                                    "2",        "--calibration", source_dir() / "tests/data/miniature/tune.json",
                                    "--dtype",  "float32",       "--device",
                                    "cpu"};
    for (const auto& [flag, value] : {std::pair("--template", "none"), std::pair("--samples", "24")}) {
      if (std::find(more.begin(), more.end(), flag) == more.end()) all.insert(all.end(), {flag, value});
    }
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Json run_json(const std::string& out, std::vector<std::string> more = {}) const {
    more.insert(more.end(), {"--json", "-q"});
    const Outcome run = run_qalora(words(out, more));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out, nullptr, false);
  }
  std::string weights(const std::string& out) const { return read_file(dir_ / out / "model.safetensors"); }
  double perplexity(const std::string& out) const {
    const Outcome run = run_qalora({"eval", "--model", dir_ / out, "--task", "perplexity", "--data",
                                    source_dir() / "tests/data/miniature/heldout.txt", "--json", "-q", "--dtype",
                                    "float32", "--device", "cpu"});
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out).at("perplexity");
  }
  TempDir dir_;
};

TEST_F(Gptq, BeatsRoundingByLossAndPerplexity) {
  const Json answer = run_json("int2");
  EXPECT_EQ(answer["method"], "gptq");
  EXPECT_EQ(answer["calibration"]["rows"], 24);
  EXPECT_EQ(answer["calibration"]["tokens"], 24 * 256);  // the miniature's context is shorter than 2048
  double loss = 0, rounding = 0;
  for (const Json& layer : answer["layers"]) {
    EXPECT_LT(layer["loss"], layer["loss_round_to_nearest"]) << layer["name"];
    EXPECT_LE(layer["loss"], layer["loss_before_refit"]) << layer["name"];
    EXPECT_GE(layer["damping"], 0.01);
    loss += layer["loss"].get<double>();
    rounding += layer["loss_round_to_nearest"].get<double>();
  }
  EXPECT_LT(loss, 0.7 * rounding);
  EXPECT_GT(answer["solver_seconds"], 0);
  const Outcome rounded =
      run_qalora({"quantize", "--model", source_dir() / "models/miniature", "--out", dir_ / "rtn", "--bits", "2"});
  EXPECT_EQ(rounded.exit_code, 0);
  EXPECT_NE(rounded.err.find("give --calibration FILE"), std::string::npos) << rounded.err;
  EXPECT_LT(perplexity("int2"), 0.95 * perplexity("rtn"));
}

TEST_F(Gptq, SaysWhatItWouldDo) {
  const Json dry = run_json("out", {"--dry-run"});
  EXPECT_EQ(dry["dry_run"], true);
  EXPECT_EQ(dry["calibration"]["rows"], 24);
  EXPECT_GT(dry["estimated_memory"]["activations"], 24 * 256 * 4);
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  EXPECT_FALSE(fs::exists(dir_ / "out.partial"));
  const Outcome human = run_qalora(words("out"));
  EXPECT_EQ(human.exit_code, 0) << human.err;
  EXPECT_NE(human.out.find("down_proj"), std::string::npos) << human.out;
  EXPECT_NE(human.out.find("share %"), std::string::npos) << human.out;
  EXPECT_NE(human.err.find("forward passes"), std::string::npos) << human.err;
}

TEST_F(Gptq, OptionsReachTheSolver) {
  run_json("plain");
  for (const std::vector<std::string>& more : std::vector<std::vector<std::string>>{{"--no-refit"},
                                                                                    {"--damping", "0.1"},
                                                                                    {"--no-static-groups"},
                                                                                    {"--search-scale", "minmax"},
                                                                                    {"--integer-zeros"},
                                                                                    {"--one-pass"},
                                                                                    {"--no-act-order"},
                                                                                    {"--seed", "7"},
                                                                                    {"--sequence-length", "128"},
                                                                                    {"--template", "alpaca"}}) {
    run_json("other", more);
    EXPECT_NE(weights("plain"), weights("other")) << more.front();
    fs::remove_all(dir_ / "other");
  }
  const Outcome few = run_qalora(words("few", {"--samples", "1", "--sequence-length", "32"}));
  EXPECT_EQ(few.exit_code, 0) << few.err;
  EXPECT_NE(few.err.find("losses will look better than they are"), std::string::npos) << few.err;
  const Outcome longer = run_qalora(words("long", {"--sequence-length", "5000"}));
  EXPECT_EQ(longer.exit_code, 2);
  EXPECT_NE(longer.err.find("reads at most 256 tokens"), std::string::npos) << longer.err;
}

// Starts the program and sends it a signal as soon as a block is kept -> its exit code.
int stopped(const std::vector<std::string>& words, const fs::path& block, int number) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<char*> arguments = {const_cast<char*>(QALORA_BINARY)};
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    ::execv(QALORA_BINARY, arguments.data());
    ::_exit(127);
  }
  for (int i = 0; i < 60000 && !fs::exists(block) && ::kill(child, 0) == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  ::kill(child, number);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

TEST_F(Gptq, AStoppedRunGoesOnWithTheSameBytes) {
  const std::vector<std::string> slow = {"--samples", "240", "--batch-size", "4", "-q"};
  EXPECT_EQ(run_qalora(words("whole", slow)).exit_code, 0);
  for (const int number : {SIGTERM, SIGINT}) {
    const std::string out = "stopped-" + std::to_string(number);
    EXPECT_EQ(stopped(words(out, slow), dir_ / (out + ".partial") / "block-00000.safetensors", number), 128 + number);
    EXPECT_FALSE(fs::exists(dir_ / out));
    EXPECT_TRUE(fs::exists(dir_ / (out + ".partial") / "block-00000.safetensors"));
    const Outcome other = run_qalora(words(out, {"--samples", "241", "--batch-size", "4", "-q"}));
    EXPECT_EQ(other.exit_code, 2);
    EXPECT_NE(other.err.find("the calibration data differ, or --samples"), std::string::npos) << other.err;
    const Outcome damped =
        run_qalora(words(out, {"--samples", "240", "--batch-size", "4", "-q", "--damping", "0.5", "--no-refit"}));
    EXPECT_EQ(damped.exit_code, 2);
    EXPECT_NE(damped.err.find("(--damping was 0.01 and is 0.5; --refit was on and is off)"), std::string::npos)
        << damped.err;
    const Outcome again = run_qalora(words(out, {"--samples", "240", "--batch-size", "4"}));
    EXPECT_EQ(again.exit_code, 0) << again.err;
    EXPECT_NE(again.err.find("blocks are finished; going on behind them"), std::string::npos) << again.err;
    EXPECT_EQ(weights("whole"), weights(out));
    EXPECT_FALSE(fs::exists(dir_ / (out + ".partial")));
  }
}

}  // namespace
}  // namespace qalora::test
