#include "qalora/train/state.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "support/support.h"

namespace qalora::train {
namespace {

RunIdentity identity_of(const TrainConfig& config, at::ScalarType compute = at::kFloat) {
  return {"data", "base", "tokenizer", "", decisive_settings(config, compute)};
}

// What refuses to continue `before` as `now`, or "".
std::string refusal(const RunIdentity& before, const RunIdentity& now) {
  try {
    require_same_run("state.json", before, now);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST(RunIdentity, StepsDecideUnderAFallingScheduleOnly) {
  for (const char* schedule : {"constant", "linear", "cosine"}) {
    TrainConfig before, after;
    before.schedule = after.schedule = schedule;
    after.steps = before.steps + 1;
    const std::string text = refusal(identity_of(before), identity_of(after));
    EXPECT_EQ(text.empty(), std::string(schedule) == "constant") << text;
    const bool explained = text.find("steps=1000, now it is steps=1001 (the schedule falls") != std::string::npos;
    EXPECT_EQ(explained, !text.empty()) << text;
    EXPECT_EQ(refusal(identity_of(before), identity_of(before)), "");
  }
}

TEST(RunIdentity, WhatDecidesTheNumbersIsComparedBothWays) {
  const TrainConfig config;
  const RunIdentity same = identity_of(config);
  EXPECT_NE(refusal(same, identity_of(config, at::kBFloat16)).find("dtype=float32, now it is dtype=bfloat16"),
            std::string::npos);
  TrainConfig held_out = config;
  held_out.eval_examples = 6;
  EXPECT_NE(refusal(identity_of(held_out), same).find("eval_examples=6"), std::string::npos);
  held_out.eval_examples = 0;
  held_out.eval_data = "held.jsonl";  // takes nothing out of the training file
  EXPECT_EQ(refusal(identity_of(held_out), same), "");
  RunIdentity more = same;
  more.settings.push_back("colour=red");
  EXPECT_NE(refusal(more, same).find("colour=red, now it is no colour"), std::string::npos) << refusal(more, same);
  EXPECT_NE(refusal(same, more).find("no colour, now it is colour=red"), std::string::npos) << refusal(same, more);
  RunIdentity started = same;
  started.initial_adapter_fingerprint = "abc";
  EXPECT_NE(refusal(started, same).find("another initial_adapter (abc..., now none)"), std::string::npos)
      << refusal(started, same);
}

TEST(RunIdentity, IntervalsDecideNothing) {
  TrainConfig before, after;
  after.log_interval = 1;
  after.eval_interval = 2;
  after.checkpoint_interval = 3;
  after.keep_checkpoints = 4;
  EXPECT_EQ(refusal(identity_of(before), identity_of(after)), "");
}

TEST(State, ReadsOnlyWhatIsWhole) {
  test::TempDir dir;
  const auto read = [&](const std::string& text) {
    test::write_file(dir / "state.json", text);
    return read_state(dir.path());
  };
  const std::string identity =
      R"("identity": {"data_fingerprint": "d", "base_fingerprint": "b", "tokenizer_fingerprint": "t",
      "initial_adapter_fingerprint": "", "settings": ["rank=4"]})";
  const std::string counts =
      R"("step": 4, "updates": 3, "skipped": 1, "skipped_in_a_row": 1, "tokens": 9, "trained_tokens": 5,
      "threads": 2)";
  const SavedState saved = read("{" + counts + ", \"evaluation_due\": true, " + identity + "}");
  EXPECT_EQ(saved.state.step, 4);
  EXPECT_EQ(saved.state.updates, 3);
  EXPECT_TRUE(saved.state.evaluation_due);
  EXPECT_EQ(saved.threads, 2);
  EXPECT_EQ(saved.identity.settings, std::vector<std::string>{"rank=4"});
  EXPECT_THROW(read("{" + counts + ", " + identity + "}"), DataError);
  EXPECT_THROW(read("{" + counts + ", \"evaluation_due\": true}"), DataError);
  EXPECT_THROW(read("{\"step\": -1, \"evaluation_due\": true, " + identity + "}"), DataError);
  EXPECT_THROW(read("{\"step\": 4"), DataError);
  EXPECT_THROW(read("[]"), DataError);
}

}  // namespace
}  // namespace qalora::train
