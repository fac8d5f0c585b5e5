// GPTQ as a person runs it: the kept miniature model, calibrated on its tuning data.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/support.h"

namespace qalora::test {
namespace {

using Json = nlohmann::json;

class Gptq : public ::testing::Test {
 protected:
  std::vector<std::string> words(const std::string& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> all = {"quantize", "--model", source_dir() / "models/miniature", "--out", dir_ / out, "--bits", "2",
                                    "--calibration", source_dir() / "tests/data/miniature/tune.json", "--template", "none", "--samples", "24",
                                    "--dtype", "float32", "--device", "cpu"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Json run_json(const std::string& out, std::vector<std::string> more = {}) const {
    more.insert(more.end(), {"--json", "-q"});
    const Outcome run = run_qalora(words(out, more));
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out, nullptr, false);
  }
  double perplexity(const std::string& out) const {
    const Outcome run = run_qalora({"eval", "--model", dir_ / out, "--task", "perplexity", "--data", source_dir() / "tests/data/miniature/heldout.txt",
                                    "--json", "-q", "--dtype", "float32", "--device", "cpu"});
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
  const Outcome rounded = run_qalora({"quantize", "--model", source_dir() / "models/miniature", "--out", dir_ / "rtn", "--bits", "2"});
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

}  // namespace
}  // namespace qalora::test
