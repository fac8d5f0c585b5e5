#include "qalora/eval/choice.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/eval/continuation.h"
#include "qalora/eval/scorer.h"
#include "support/support.h"
#include "unit/eval/tiny.h"

namespace qalora::eval {
namespace {

using test::TempDir;
using test::write_file;

TEST(ReadChoices, BadLinesAreNamed) {
  TempDir dir;
  const fs::path path = dir / "q.jsonl";
  const std::string good = R"({"context":"Rome is","choices":["a city","a dish"],"answer":0})";
  const std::pair<const char*, const char*> bad[] = {
      {R"({"context":"x","choices":["a","b"],"answer":2})", "\"answer\" must be 0 to 1"},
      {R"({"context":"x","choices":["a","b"],"answer":"0"})", "\"answer\" must be the index"},
      {R"({"context":"x","choices":["a"],"answer":0})", "two or more"},
      {R"({"context":"x","choices":["a","  "],"answer":0})", "choice 1 is empty"},
      {R"({"context":"x","choices":["a",3],"answer":0})", "must be strings"},
      {R"({"choices":["a","b"],"answer":0})", "\"context\" is missing"},
      {R"([1, 2])", "expected a JSON object"},
      {R"({"context":)", "not valid JSON"},
  };
  for (const auto& [line, words] : bad) {
    write_file(path, good + "\n\n" + line + "\n");
    try {
      read_choices(path, 0);
      FAIL() << line;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find("q.jsonl:3: "), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
    EXPECT_EQ(read_choices(path, 1).size(), 1u);
  }
  write_file(path, "\n");
  EXPECT_THROW(read_choices(path, 0), DataError);
}

class Choices : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRE_SHARED("goldens/mmlu/model");
    const fs::path folder = test::shared_dir() / "goldens/mmlu/model";
    tokenizer_ = std::make_unique<text::Tokenizer>(folder);
    model_ = model::load_model(folder, {});
  }
  ChoiceAnswer run(const std::string& context, const std::vector<std::string>& choices, int64_t batch_tokens = 256) {
    return run_choices(model_, *tokenizer_, {{context, choices, 0, "here"}}, batch_tokens).answers[0];
  }
  // Summed log-likelihood in double over the model's own logits: no batching, no shared code.
  double by_hand(const std::vector<int64_t>& ids, size_t from) {
    at::NoGradGuard no_grad;
    model::KvCache cache;
    const at::Tensor logits =
        model_.logits(model_.forward_cached(at::tensor(at::IntArrayRef(ids), at::kLong), cache)).to(at::kDouble);
    double sum = 0;
    for (size_t t = from; t < ids.size(); ++t) {
      const double* row = logits.data_ptr<double>() + static_cast<int64_t>(t - 1) * logits.size(1);
      double total = 0;
      for (int64_t v = 0; v < logits.size(1); ++v) total += std::exp(row[v]);
      sum += row[ids[t]] - std::log(total);
    }
    return sum;
  }
  std::unique_ptr<text::Tokenizer> tokenizer_;
  model::Llama model_;
};

TEST_F(Choices, EqualAPlainLoopInDouble) {
  const std::string context = "The capital of the country is";
  const std::vector<std::string> choices = {"a very long answer", "Rome", "none of these"};
  const auto answer = run(context, choices);
  const size_t begin = tokenizer_->encode(context, {.add_bos = true}).size();
  for (size_t i = 0; i < choices.size(); ++i) {
    const auto ids = tokenizer_->encode(context + " " + choices[i], {.add_bos = true});
    // f32 through two layers and up to a dozen summed tokens; the goldens measured 1.4e-5 for one.
    EXPECT_NEAR(answer.scores[i], by_hand(ids, begin), 1e-4);
    EXPECT_GT(std::abs(answer.scores[i] - by_hand(ids, begin + 1)), 1e-2);
    EXPECT_DOUBLE_EQ(answer.normalised[i], answer.scores[i] / static_cast<double>(choices[i].size()));
  }
}

TEST_F(Choices, ABlankIsBroughtOnce) {
  const auto plain = run("The sky is", {"blue", "green cheese"});
  EXPECT_EQ(plain.scores, run("The sky is ", {"blue", "green cheese"}).scores);
  EXPECT_EQ(plain.scores, run("The sky is", {" blue", " green cheese"}).scores);
  EXPECT_EQ(plain.normalised, run("The sky is", {" blue", " green cheese"}).normalised);
  EXPECT_NE(plain.scores, run("The sky is ", {" blue", " green cheese"}).scores);
}

TEST_F(Choices, BatchDoesNotMatter) {
  std::vector<ChoiceQuestion> questions;
  for (int i = 0; i < 12; ++i) {
    questions.push_back({"Question " + std::string(static_cast<size_t>(3 * i), 'x'),
                         {"one", "two words", std::string(static_cast<size_t>(i + 1), 'y')},
                         i % 3,
                         "here"});
  }
  const auto small = run_choices(model_, *tokenizer_, questions, 1),
             large = run_choices(model_, *tokenizer_, questions, 100000);
  for (size_t i = 0; i < questions.size(); ++i) EXPECT_EQ(small.answers[i].scores, large.answers[i].scores);
  EXPECT_EQ(small.correct, large.correct);
  const auto json = to_json(small);
  EXPECT_EQ(json["questions"], 12);
  EXPECT_DOUBLE_EQ(json["accuracy"], static_cast<double>(small.correct) / 12);
  const double p = json["accuracy"];
  EXPECT_NEAR(json["standard_error"], std::sqrt(p * (1 - p) / 11), 1e-12);
}

TEST_F(Choices, OneTokenTailsShareAPassWithoutAnyDifference) {
  // The same tail alone in a question, and beside a longer one that forces a pass of its own.
  Continuations single{{1, 40, 50, 60}, {{70}, {80}}, "here"}, mixed{{1, 40, 50, 60}, {{70}, {80, 90}}, "here"};
  const auto scores = score_continuations(model_, {single, mixed}, 64, "test");
  EXPECT_EQ(scores[0].log_likelihoods[0], scores[1].log_likelihoods[0]);
  EXPECT_NE(scores[0].log_likelihoods[1], scores[1].log_likelihoods[1]);
}

TEST_F(Choices, LongContextsLoseTheirBeginning) {
  model_.config.context_length = 32;
  std::string context;
  for (int i = 0; i < 30; ++i) context += "word ";
  const auto cut = run(context + "end is", {"near", "far away"});
  EXPECT_GT(cut.cut_tokens, 0);
  model_.config.context_length = 1024;
  const auto all = encode_continuations(*tokenizer_, context + "end is", {" near"}, "here");
  std::vector<int64_t> ids = all.context;
  ids.insert(ids.end(), all.tails[0].begin(), all.tails[0].end());
  ids.erase(ids.begin(), ids.end() - 33);
  EXPECT_NEAR(cut.scores[0], by_hand({ids.begin(), ids.end()}, ids.size() - all.tails[0].size()), 1e-4);
}

TEST_F(Choices, EmptyContextStartsFromBos) {
  const auto answer = run("", {"Rome", "Paris"});
  const auto ids = tokenizer_->encode(" Rome", {.add_bos = true});
  EXPECT_NEAR(answer.scores[0], by_hand(ids, 1), 1e-4);
}

}  // namespace
}  // namespace qalora::eval
