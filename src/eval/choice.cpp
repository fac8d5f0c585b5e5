#include "qalora/eval/choice.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/eval/blanks.h"
#include "qalora/eval/continuation.h"
#include "qalora/eval/json_lines.h"
#include "qalora/eval/mmlu.h"

namespace qalora::eval {
namespace {

ChoiceQuestion parse_question(const nlohmann::json& row, const std::string& where) {
  ChoiceQuestion question;
  question.where = where;
  question.context = string_field(row, "context", where);
  const auto choices = row.find("choices");
  QALORA_REQUIRE(choices != row.end() && choices->is_array() && choices->size() >= 2, DataError, where,
                 ": \"choices\" must be a list of two or more strings");
  for (const auto& choice : *choices) {
    QALORA_REQUIRE(choice.is_string(), DataError, where, ": \"choices\" must be strings, got ", choice.type_name());
    question.choices.push_back(choice.get<std::string>());
    QALORA_REQUIRE(leading_blanks(question.choices.back()) < question.choices.back().size(), DataError, where,
                   ": choice ", question.choices.size() - 1, " is empty");
  }
  const auto answer = row.find("answer");
  QALORA_REQUIRE(answer != row.end() && answer->is_number_integer(), DataError, where,
                 ": \"answer\" must be the index of the right choice, from 0");
  const int64_t count = static_cast<int64_t>(question.choices.size());
  QALORA_REQUIRE(*answer >= 0 && *answer < count, DataError, where, ": \"answer\" must be 0 to ", count - 1, ", got ",
                 answer->dump());
  question.answer = answer->get<int64_t>();
  return question;
}

int64_t first_largest(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

}  // namespace

std::vector<ChoiceQuestion> read_choices(const fs::path& path, int64_t limit) {
  std::vector<ChoiceQuestion> questions;
  read_json_lines(path, [&](const nlohmann::json& row, const std::string& where) {
    questions.push_back(parse_question(row, where));
    return limit <= 0 || static_cast<int64_t>(questions.size()) < limit;
  });
  QALORA_REQUIRE(!questions.empty(), DataError, path.string(), ": no questions in it");
  return questions;
}

ChoiceResult run_choices(model::Llama& model, const text::Tokenizer& tokenizer,
                         const std::vector<ChoiceQuestion>& questions, int64_t batch_tokens) {
  std::vector<Continuations> prompts;
  for (const auto& question : questions) {
    std::vector<std::string> texts;
    for (const auto& choice : question.choices) {
      const bool joined = trailing_blanks(question.context) > 0 || leading_blanks(choice) > 0;
      texts.push_back(joined ? choice : " " + choice);
    }
    prompts.push_back(encode_continuations(tokenizer, question.context, texts, question.where));
  }
  const auto start = std::chrono::steady_clock::now();
  const auto scores = score_continuations(model, prompts, batch_tokens, "choice");
  ChoiceResult result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (size_t i = 0; i < questions.size(); ++i) {
    ChoiceAnswer answer;
    answer.scores = scores[i].log_likelihoods;
    for (size_t c = 0; c < answer.scores.size(); ++c) {
      const std::string& choice = questions[i].choices[c];
      answer.normalised.push_back(answer.scores[c] / static_cast<double>(choice.size() - leading_blanks(choice)));
    }
    answer.prediction = first_largest(answer.scores);
    answer.prediction_norm = first_largest(answer.normalised);
    answer.answer = questions[i].answer;
    answer.prompt_tokens = scores[i].prompt_tokens;
    answer.cut_tokens = scores[i].cut_tokens;
    result.correct += answer.prediction == answer.answer ? 1 : 0;
    result.correct_norm += answer.prediction_norm == answer.answer ? 1 : 0;
    result.cut_prompts += answer.cut_tokens > 0 ? 1 : 0;
    result.tokens += answer.prompt_tokens;
    result.answers.push_back(std::move(answer));
  }
  return result;
}

nlohmann::json to_json(const ChoiceResult& result) {
  const int64_t questions = static_cast<int64_t>(result.answers.size());
  const Accuracy plain{questions, result.correct}, norm{questions, result.correct_norm};
  const auto error = [](const Accuracy& accuracy) {
    const auto value = standard_error({&accuracy, 1});
    return value ? nlohmann::json(*value) : nlohmann::json();
  };
  return {{"task", "choice"},
          {"questions", questions},
          {"accuracy", plain.value()},
          {"accuracy_norm", norm.value()},
          {"standard_error", error(plain)},
          {"standard_error_norm", error(norm)},
          {"cut_prompts", result.cut_prompts},
          {"tokens", result.tokens},
          {"seconds", result.seconds},
          {"tokens_per_second", result.seconds > 0 ? static_cast<double>(result.tokens) / result.seconds : 0.0}};
}

std::string details_line(const ChoiceResult& result, size_t index) {
  const ChoiceAnswer& answer = result.answers[index];
  const nlohmann::json line = {{"index", index},
                               {"prompt_tokens", answer.prompt_tokens},
                               {"cut_tokens", answer.cut_tokens},
                               {"scores", answer.scores},
                               {"scores_norm", answer.normalised},
                               {"prediction", answer.prediction},
                               {"prediction_norm", answer.prediction_norm},
                               {"answer", answer.answer}};
  return line.dump();
}

}  // namespace qalora::eval
