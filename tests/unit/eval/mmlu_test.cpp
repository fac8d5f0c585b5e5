#include "qalora/eval/mmlu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/eval/continuation.h"
#include "support/support.h"
#include "unit/eval/tiny.h"

namespace qalora::eval {
namespace {

using test::TempDir;
using test::write_file;

MmluResult result_of(const std::vector<std::pair<std::string, std::vector<bool>>>& subjects) {
  MmluResult result;
  for (const auto& [name, right] : subjects) {
    for (size_t i = 0; i < right.size(); ++i) {
      MmluAnswer answer;
      answer.subject = result.subjects.size();
      answer.index = static_cast<int64_t>(i);
      answer.prediction = right[i] ? 2 : 1;
      answer.answer = 2;
      result.answers.push_back(answer);
    }
    result.subjects.push_back(name);
  }
  return result;
}

TEST(MmluSummary, MicroMacroAndCategories) {
  const auto result = result_of(
      {{"anatomy", {true, false, true, true}}, {"virology", {false, false}}, {"astronomy", {true}}, {"mine", {false}}});
  const MmluSummary summary = summarise(result);
  EXPECT_DOUBLE_EQ(summary.micro.value(), 4.0 / 8);
  EXPECT_DOUBLE_EQ(summary.macro_subjects, (0.75 + 0 + 1 + 0) / 4);
  EXPECT_DOUBLE_EQ(summary.categories[static_cast<size_t>(Category::kOther)].value(),
                   0.5);  // its six questions, not two subjects
  EXPECT_EQ(summary.categories[static_cast<size_t>(Category::kHumanities)].questions, 0);
  const auto json = to_json(result);
  EXPECT_TRUE(json["categories"]["humanities"].is_null());
  EXPECT_EQ(json["categories"]["stem"], 1.0);
  EXPECT_EQ(json["subjects"]["mine"]["questions"], 1);
  EXPECT_EQ(json["questions"], 8);
}

// The sample deviation written out, and the harness's formula for a group of subjects.
TEST(MmluSummary, StandardErrors) {
  const Accuracy a{5, 2}, b{9, 7};
  const auto by_hand = [](const Accuracy& x) {
    double squares = 0;
    for (int64_t i = 0; i < x.questions; ++i) squares += std::pow((i < x.correct ? 1.0 : 0.0) - x.value(), 2);
    return std::sqrt(squares / static_cast<double>(x.questions - 1)) / std::sqrt(static_cast<double>(x.questions));
  };
  EXPECT_NEAR(*standard_error({&a, 1}), by_hand(a), 1e-15);
  EXPECT_NEAR(*standard_error({&b, 1}), by_hand(b), 1e-15);
  const Accuracy both[] = {a, b};
  const double pooled = std::sqrt((4 * 5 * std::pow(by_hand(a), 2) + 8 * 9 * std::pow(by_hand(b), 2)) / (14 - 2) / 14);
  EXPECT_NEAR(*standard_error(both), pooled, 1e-15);
  const Accuracy one{1, 1};
  EXPECT_FALSE(standard_error({&one, 1}).has_value());
}

// The tiny model and tokenizer of the shared data; contexts are shortened to make prompts too long.
class MmluRun : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRE_SHARED("goldens/mmlu/model");
    folder_ = test::shared_dir() / "goldens/mmlu/model";
    tokenizer_ = std::make_unique<text::Tokenizer>(folder_);
    model_ = model::load_model(folder_, {});
    write_file(dir_ / "test/anatomy_test.csv",
               "Which bone is long?,rib,femur,skull,toe,B\nWhich is short?,rib,femur,skull,toe,D\n");
    write_file(dir_ / "dev/anatomy_dev.csv",
               "One plus one?,1,2,3,4,B\nTwo plus one?,1,2,3,4,C\nTwo plus two?,1,2,3,4,D\n");
  }
  MmluSource source(Protocol protocol, int64_t shots) const {
    return {.data = dir_.path(), .protocol = protocol, .shots = shots, .subjects = {}};
  }
  MmluResult run(Protocol protocol, int64_t shots, int64_t batch_tokens = 512) {
    return run_mmlu(model_, *tokenizer_, read_mmlu(source(protocol, shots)), protocol, batch_tokens);
  }
  TempDir dir_;
  fs::path folder_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
  model::Llama model_;
};

TEST_F(MmluRun, LettersAreDistinctTokensInContext) {
  const auto found = encode_continuations(*tokenizer_, "x\nAnswer:", {" A", " B", " C", " D"}, "here");
  std::set<int64_t> ids;
  for (const auto& tail : found.tails) {
    ASSERT_EQ(tail.size(), 1u);
    ids.insert(tail[0]);
  }
  EXPECT_EQ(ids.size(), 4u);
  EXPECT_EQ(found.context.front(), tokenizer_->bos_id());
  EXPECT_EQ(std::count(found.context.begin(), found.context.end(), tokenizer_->bos_id()), 1);
}

TEST_F(MmluRun, ScoresDoNotDependOnTheBatchButOnTheModel) {
  for (Protocol protocol : {Protocol::kHendrycks, Protocol::kQlora, Protocol::kLmEval}) {
    const auto small = run(protocol, 3, 1), large = run(protocol, 3, 100000);
    ASSERT_EQ(small.answers.size(), 2u);
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ(small.answers[i].scores, large.answers[i].scores);
    EXPECT_NE(small.answers[0].scores, run(protocol, 2).answers[0].scores);
  }
  const auto before = run(Protocol::kLmEval, 0);
  at::NoGradGuard no_grad;
  model_.final_norm.mul_(1.01);
  EXPECT_NE(before.answers[0].scores, run(Protocol::kLmEval, 0).answers[0].scores);
}

// The largest difference between two answers' scores once each is measured from its own first letter.
double shape_distance(const MmluAnswer& a, const MmluAnswer& b) {
  double largest = 0;
  for (size_t i = 1; i < 4; ++i)
    largest = std::max(largest, std::abs((a.scores[i] - a.scores[0]) - (b.scores[i] - b.scores[0])));
  return largest;
}

TEST_F(MmluRun, LettersLogitsAndLikelihoodsAgreeUpToAConstant) {
  // The same prompts under both scores: log-likelihoods are the letters' logits less one log of a sum. Logits of some
  // 10 in f32, and a log-softmax that rounds twice more: 4 x 10 x 2^-24.
  const auto subjects = read_mmlu(source(Protocol::kLmEval, 1));
  const auto logits = run_mmlu(model_, *tokenizer_, subjects, Protocol::kQlora, 512);
  const auto likelihoods = run_mmlu(model_, *tokenizer_, subjects, Protocol::kLmEval, 512);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_LT(shape_distance(logits.answers[i], likelihoods.answers[i]), 40 * std::ldexp(1.0, -24) * 4);
    EXPECT_GT(std::abs(logits.answers[i].scores[0] - likelihoods.answers[i].scores[0]), 0.1);  // the constant is there
    EXPECT_LT(likelihoods.answers[i].scores[0], 0);
  }
  EXPECT_GT(shape_distance(logits.answers[0], likelihoods.answers[1]), 1e-3);  // must differ: another question
}

TEST_F(MmluRun, PromptsOfTheTwoLogitProtocolsAreTheSame) {
  // hendrycks and lm-eval differ by one blank in the header; the qlora prompt is hendrycks's.
  const auto original = run(Protocol::kHendrycks, 1), callback = run(Protocol::kQlora, 1);
  EXPECT_EQ(original.answers[0].scores, callback.answers[0].scores);
  EXPECT_GT(shape_distance(original.answers[0], run(Protocol::kLmEval, 1).answers[0]), 1e-3);
}

TEST_F(MmluRun, HendrycksDropsTheLastShots) {
  const int64_t whole = run(Protocol::kHendrycks, 2).answers[0].prompt_tokens;
  const auto two = run(Protocol::kHendrycks, 2);
  model_.config.context_length = whole;
  const auto cut = run(Protocol::kHendrycks, 3);
  EXPECT_EQ(cut.answers[0].shots, 2);
  EXPECT_EQ(cut.answers[0].dropped_shots, 1);
  // Another context length pads to another length, and attention then sums in another order: f32 rounding, no more.
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(cut.answers[0].scores[i], two.answers[0].scores[i], 1e-5);
  EXPECT_GE(cut.cut_prompts, 1);
  EXPECT_EQ(run(Protocol::kHendrycks, 0).cut_prompts, 0);
  model_.config.context_length = 20;
  try {
    run(Protocol::kHendrycks, 3);
    FAIL();
  } catch (const DataError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("'anatomy', row 0"), std::string::npos) << text;
    EXPECT_NE(text.find("question alone does not fit"), std::string::npos) << text;
  }
}

TEST_F(MmluRun, QloraCutsTheRightAndTheHarnessTheLeft) {
  const auto whole = run(Protocol::kQlora, 3), left_whole = run(Protocol::kLmEval, 3);
  model_.config.context_length = 64;
  const auto right = run(Protocol::kQlora, 3), left = run(Protocol::kLmEval, 3);
  for (const auto* cut : {&right, &left}) {
    EXPECT_EQ(cut->cut_prompts, 2);
    EXPECT_EQ(cut->answers[0].prompt_tokens, 64);
  }
  EXPECT_EQ(right.answers[0].cut_tokens, whole.answers[0].prompt_tokens - 64);
  EXPECT_EQ(left.answers[0].cut_tokens, left_whole.answers[0].prompt_tokens - 64);
  // Cut on the right both questions are lost, so they look alike; cut on the left they do not.
  EXPECT_EQ(right.answers[0].scores, right.answers[1].scores);
  EXPECT_NE(left.answers[0].scores, left.answers[1].scores);
}

// `shots` counts the worked examples that a cut leaves whole: one token less of context costs one of them.
TEST_F(MmluRun, ShotsAreThoseThatTheModelSeesWhole) {
  const auto tokens = [&](const std::string& text) {
    return static_cast<int64_t>(tokenizer_->encode(text, {.add_bos = true}).size());
  };
  const auto shots = [&](Protocol protocol, int64_t context_length) {
    model_.config.context_length = context_length;
    const auto answer = run(protocol, 3).answers[0];
    EXPECT_GT(answer.cut_tokens, 0);
    return answer.shots;
  };
  const auto callback = read_mmlu(source(Protocol::kQlora, 3))[0], harness = read_mmlu(source(Protocol::kLmEval, 3))[0];
  const std::string two =
      callback.header + callback.examples[0] + callback.examples[1].substr(0, callback.examples[1].size() - 2);
  EXPECT_EQ(shots(Protocol::kQlora, tokens(two)), 2);
  EXPECT_EQ(shots(Protocol::kQlora, tokens(two) - 1), 1);
  const int64_t whole = tokens(mmlu_prompt(harness, harness.questions[0], 3)),
                before_second = tokens(harness.header + harness.examples[0]);
  EXPECT_EQ(shots(Protocol::kLmEval, whole - before_second), 2);
  EXPECT_EQ(shots(Protocol::kLmEval, whole - before_second - 1), 1);
  model_.config.context_length = 1024;
  EXPECT_EQ(run(Protocol::kQlora, 3).answers[0].shots, 3);

  // Worked examples that QLoRA's file brings itself.
  const std::string text = callback.header + "w?\nAnswer: A\n\nv?\nAnswer: B\n\nx?\nAnswer:";
  write_file(dir_ / "own.json", nlohmann::json({{"subject", "anatomy"}, {"input", text}, {"output", "C"}}).dump());
  const auto own = read_mmlu({.data = dir_ / "own.json", .protocol = Protocol::kQlora});
  const auto own_shots = [&] { return run_mmlu(model_, *tokenizer_, own, Protocol::kQlora, 512).answers[0].shots; };
  EXPECT_EQ(own_shots(), 2);
  model_.config.context_length = tokens(text.substr(0, text.find("\n\nx?")));
  EXPECT_EQ(own_shots(), 2);
  --model_.config.context_length;
  EXPECT_EQ(own_shots(), 1);
}

// QLoRA's data collator writes BOS itself, whatever the tokenizer's configuration says.
TEST_F(MmluRun, QloraBeginsWithBosAlways) {
  fs::create_directories(dir_ / "plain");
  fs::copy_file(folder_ / "tokenizer.model", dir_ / "plain/tokenizer.model");
  write_file(dir_ / "plain/tokenizer_config.json", R"({"add_bos_token": false})");
  const text::Tokenizer plain(dir_ / "plain");
  ASSERT_FALSE(plain.adds_bos());
  const auto tokens = [&](Protocol protocol, const text::Tokenizer& tokenizer) {
    const auto result = run_mmlu(model_, tokenizer, read_mmlu(source(protocol, 1)), protocol, 512);
    return std::pair(result.bos, result.answers[0].prompt_tokens);
  };
  const int64_t whole = tokens(Protocol::kQlora, *tokenizer_).second;
  EXPECT_EQ(tokens(Protocol::kQlora, plain), std::pair(true, whole));
  EXPECT_EQ(tokens(Protocol::kHendrycks, plain), std::pair(false, whole - 1));
  EXPECT_EQ(tokens(Protocol::kHendrycks, *tokenizer_), std::pair(true, whole));
}

TEST_F(MmluRun, DetailsInTheOrderOfTheFile) {
  const auto result = run(Protocol::kHendrycks, 0);
  const auto line = nlohmann::json::parse(details_line(result, result.answers[1]));
  EXPECT_EQ(line["subject"], "anatomy");
  EXPECT_EQ(line["index"], 1);
  EXPECT_EQ(line["answer"], "D");
  EXPECT_EQ(line["shots"], 0);
  EXPECT_EQ(line["scores"].size(), 4u);
  EXPECT_EQ(line["scores"][0].get<double>(), result.answers[1].scores[0]);
  const size_t best = std::max_element(result.answers[1].scores.begin(), result.answers[1].scores.end()) -
                      result.answers[1].scores.begin();
  EXPECT_EQ(line["prediction"], std::string(1, static_cast<char>('A' + best)));
}

TEST_F(MmluRun, EqualScoresGoToTheFirstLetter) {
  at::NoGradGuard no_grad;
  model_.head = at::zeros_like(model_.head);
  for (Protocol protocol : {Protocol::kHendrycks, Protocol::kLmEval})
    EXPECT_EQ(run(protocol, 0).answers[1].prediction, 0);
}

TEST_F(MmluRun, NonFiniteScoresAreAnError) {
  at::NoGradGuard no_grad;
  model_.final_norm = at::full_like(model_.final_norm, std::numeric_limits<float>::quiet_NaN());
  EXPECT_THROW(run(Protocol::kHendrycks, 0), DataError);
  EXPECT_THROW(run(Protocol::kLmEval, 0), DataError);
}

}  // namespace
}  // namespace qalora::eval
