// MMLU against what others computed: prompts to the byte, and lm-eval's own log-likelihoods question by question.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "qalora/eval/continuation.h"
#include "qalora/eval/mmlu.h"
#include "qalora/eval/scorer.h"
#include "qalora/model/load.h"
#include "support/support.h"

namespace qalora::eval {
namespace {

using nlohmann::json;

const fs::path data() { return test::shared_dir() / "data/mmlu"; }
const fs::path goldens() { return test::shared_dir() / "goldens/mmlu"; }

Protocol protocol_of(const std::string& name) {
  return name == "lm_eval" ? Protocol::kLmEval : name == "qlora" ? Protocol::kQlora : Protocol::kHendrycks;
}

TEST(GoldenMmlu, EveryPromptToTheByte) {
  REQUIRE_SHARED("goldens/mmlu/prompts.json");
  REQUIRE_SHARED("data/mmlu/zero_shot_mmlu_val.json");
  std::map<std::pair<int, int64_t>, std::vector<MmluSubject>> cache;
  const json prompts = json::parse(test::read_file(goldens() / "prompts.json"));
  ASSERT_EQ(prompts.size(), 60u);
  for (const auto& golden : prompts) {
    const Protocol protocol = protocol_of(golden["protocol"]);
    const int64_t shots = golden["shots"];
    auto& subjects = cache[{static_cast<int>(protocol), shots}];
    if (subjects.empty()) {
      subjects = read_mmlu({.data = protocol == Protocol::kQlora ? data() / "zero_shot_mmlu_val.json" : data(),
                            .protocol = protocol,
                            .shots = shots,
                            .subjects = {}});
    }
    bool found = false;
    for (const auto& subject : subjects) {
      if (subject.name != golden["subject"].get<std::string>()) continue;
      for (const auto& question : subject.questions) {
        if (question.index != golden["index"].get<int64_t>()) continue;
        found = true;
        EXPECT_EQ(mmlu_prompt(subject, question, static_cast<size_t>(shots)), golden["prompt"].get<std::string>());
        EXPECT_EQ(std::string(1, static_cast<char>('A' + question.answer)), golden["answer"].get<std::string>());
      }
    }
    EXPECT_TRUE(found) << golden["subject"] << " " << golden["index"];
  }
}

TEST(GoldenMmlu, LogLikelihoodsOfTheHarness) {
  REQUIRE_SHARED("goldens/mmlu/scores.json");
  REQUIRE_SHARED("data/mmlu/test");
  const json scores = json::parse(test::read_file(goldens() / "scores.json"));
  model::Llama model = model::load_model(goldens() / "model", {});
  const text::Tokenizer tokenizer(goldens() / "model");
  std::vector<std::string> names;
  for (const auto& row : scores["rows"]) {
    if (std::find(names.begin(), names.end(), row["subject"]) == names.end()) names.push_back(row["subject"]);
  }
  for (int64_t shots : {0, 5}) {
    const MmluSource source{
        .data = data(), .protocol = Protocol::kLmEval, .shots = shots, .subjects = names, .limit = 14};
    const MmluResult result = run_mmlu(model, tokenizer, read_mmlu(source), source.protocol, kDefaultBatchTokens);
    int matched = 0;
    for (const auto& row : scores["rows"]) {
      if (row["shots"] != shots) continue;
      for (const auto& answer : result.answers) {
        if (result.subjects[answer.subject] != row["subject"] || answer.index != row["index"]) continue;
        ++matched;
        EXPECT_EQ(answer.prompt_tokens + answer.cut_tokens, row["context_tokens"].get<int64_t>());
        EXPECT_EQ(answer.cut_tokens > 0, row["truncated_on_the_left"].get<bool>());
        for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(answer.scores[i], row["loglikelihoods"][i].get<double>(), 1e-4);
        if (row["smallest_gap_to_the_best"].get<double>() > 1e-3) {
          EXPECT_EQ(answer.prediction, row["prediction"].get<int>());
        }
        EXPECT_EQ(std::string(1, static_cast<char>('A' + answer.answer)), row["answer"].get<std::string>());
      }
    }
    EXPECT_EQ(matched, 8) << shots;
    // What the harness made of the same answers, subject by subject. Its acc_stderr is "N/A": with two questions it
    // gives none.
    for (const auto& task : scores["tasks"]) {
      if (task["shots"] != shots) continue;
      Accuracy mine;
      for (const auto& row : scores["rows"]) {
        if (row["shots"] != shots || row["subject"] != task["subject"]) continue;
        for (const auto& answer : result.answers) {
          if (result.subjects[answer.subject] != row["subject"] || answer.index != row["index"]) continue;
          ++mine.questions;
          mine.correct += answer.prediction == answer.answer ? 1 : 0;
        }
      }
      EXPECT_EQ(mine.questions, task["questions"].get<int64_t>());
      EXPECT_EQ(mine.value(), task["acc"].get<double>()) << task;
    }
  }
}

TEST(GoldenMmlu, TokensOfTheHarness) {
  REQUIRE_SHARED("goldens/mmlu/scores.json");
  const json scores = json::parse(test::read_file(goldens() / "scores.json"));
  const text::Tokenizer tokenizer(goldens() / "model");
  for (int64_t shots : {0, 5}) {
    const auto subjects = read_mmlu({.data = data(), .protocol = Protocol::kLmEval, .shots = shots, .subjects = {}});
    for (const auto& row : scores["rows"]) {
      if (row["shots"] != shots) continue;
      for (const auto& subject : subjects) {
        if (subject.name != row["subject"].get<std::string>()) continue;
        const auto& question = subject.questions[row["index"].get<size_t>()];
        const std::string prompt = mmlu_prompt(subject, question, static_cast<size_t>(shots));
        const auto found = encode_continuations(tokenizer, prompt, {" A", " B", " C", " D"}, question.where);
        EXPECT_EQ(found.tails, row["continuation_ids"].get<std::vector<std::vector<int64_t>>>());
        if (row["truncated_on_the_left"].get<bool>()) continue;  // the golden shows the ends of what is left
        const auto first = row["first_context_ids"].get<std::vector<int64_t>>(),
                   last = row["last_context_ids"].get<std::vector<int64_t>>();
        EXPECT_TRUE(std::equal(first.begin(), first.end(), found.context.begin()));
        EXPECT_TRUE(std::equal(last.rbegin(), last.rend(), found.context.rbegin()));
      }
    }
  }
}

// Letters' logits, as hendrycks and qlora compare them, against the harness's log-likelihoods of the same prompts.
TEST(GoldenMmlu, LettersLogitsAndLikelihoodsAgreeUpToAConstant) {
  REQUIRE_SHARED("goldens/mmlu/scores.json");
  REQUIRE_SHARED("data/mmlu/test");
  const json scores = json::parse(test::read_file(goldens() / "scores.json"));
  model::Llama model = model::load_model(goldens() / "model", {});
  const text::Tokenizer tokenizer(goldens() / "model");
  int matched = 0;
  double constant = 0;
  for (const auto& row : scores["rows"]) {
    if (row["truncated_on_the_left"].get<bool>()) continue;  // qlora cuts on the right
    auto subjects = read_mmlu({.data = data(),
                               .protocol = Protocol::kLmEval,
                               .shots = row["shots"].get<int64_t>(),
                               .subjects = {row["subject"]}});
    subjects[0].questions = {subjects[0].questions[row["index"].get<size_t>()]};
    const MmluResult result = run_mmlu(model, tokenizer, subjects, Protocol::kQlora, kDefaultBatchTokens);
    const auto& logits = result.answers.at(0).scores;
    const auto golden = row["loglikelihoods"].get<std::vector<double>>();
    for (size_t i = 1; i < 4; ++i)
      EXPECT_NEAR(logits[i] - logits[0], golden[i] - golden[0], 2e-4) << row;  // twice the golden's 1e-4
    constant = std::max(constant, std::abs(logits[0] - golden[0]));
    ++matched;
  }
  EXPECT_GE(matched, 8);
  EXPECT_GT(constant, 1);  // they are not the same numbers
}

// The original protocol never sees a question cut: on the same model shots are dropped where the harness cuts.
TEST(GoldenMmlu, OriginalProtocolOnTheSameModel) {
  REQUIRE_SHARED("goldens/mmlu/model");
  REQUIRE_SHARED("data/mmlu/test");
  model::Llama model = model::load_model(goldens() / "model", {});
  const text::Tokenizer tokenizer(goldens() / "model");
  const MmluSource source{.data = data(),
                          .protocol = Protocol::kHendrycks,
                          .shots = 5,
                          .subjects = {"college_computer_science", "anatomy"},
                          .limit = 4};
  const MmluResult result = run_mmlu(model, tokenizer, read_mmlu(source), source.protocol, kDefaultBatchTokens);
  ASSERT_EQ(result.answers.size(), 8u);
  EXPECT_GT(result.cut_prompts, 0);
  for (const auto& answer : result.answers) {
    EXPECT_LE(answer.prompt_tokens, 1024);
    EXPECT_EQ(answer.shots + answer.dropped_shots, 5);
    EXPECT_EQ(answer.cut_tokens, 0);
  }
}

}  // namespace
}  // namespace qalora::eval
