#include <cmath>
#include <nlohmann/json.hpp>

#include "qalora/eval/mmlu.h"

namespace qalora::eval {

std::optional<double> standard_error(std::span<const Accuracy> groups) {
  // Sum of (n - 1) * variance is n * p * (1 - p) for outcomes that are 0 or 1.
  double squares = 0;
  int64_t questions = 0, freedom = 0;
  for (const auto& group : groups) {
    if (group.questions == 0) continue;
    squares += static_cast<double>(group.correct) * (1 - group.value());
    questions += group.questions;
    freedom += group.questions - 1;
  }
  if (freedom == 0) return std::nullopt;
  return std::sqrt(squares / static_cast<double>(freedom) / static_cast<double>(questions));
}

MmluSummary summarise(const MmluResult& result) {
  MmluSummary summary;
  summary.subjects.resize(result.subjects.size());
  const auto count = [](Accuracy& accuracy, const MmluAnswer& answer) {
    ++accuracy.questions;
    accuracy.correct += answer.prediction == answer.answer ? 1 : 0;
  };
  for (const auto& answer : result.answers) {
    count(summary.micro, answer);
    count(summary.subjects[answer.subject], answer);
    if (const auto category = category_of(result.subjects[answer.subject])) {
      count(summary.categories[static_cast<size_t>(*category)], answer);
    }
  }
  for (const auto& subject : summary.subjects) summary.macro_subjects += subject.value();
  summary.macro_subjects /= static_cast<double>(summary.subjects.size());
  summary.micro_error = standard_error(summary.subjects);
  return summary;
}

nlohmann::json to_json(const MmluResult& result) {
  const MmluSummary summary = summarise(result);
  const auto optional_number = [](const std::optional<double>& value) {
    return value ? nlohmann::json(*value) : nlohmann::json();
  };
  nlohmann::json subjects = nlohmann::json::object();
  for (size_t i = 0; i < result.subjects.size(); ++i) {
    const Accuracy& accuracy = summary.subjects[i];
    subjects[result.subjects[i]] = {{"accuracy", accuracy.value()},
                                    {"questions", accuracy.questions},
                                    {"standard_error", optional_number(standard_error({&accuracy, 1}))}};
  }
  nlohmann::json categories = nlohmann::json::object();
  for (Category category : kCategories) {
    const Accuracy& accuracy = summary.categories[static_cast<size_t>(category)];
    categories[category_name(category)] = accuracy.questions > 0 ? nlohmann::json(accuracy.value()) : nlohmann::json();
  }
  return {{"task", "mmlu"},
          {"protocol", protocol_name(result.protocol)},
          {"shots", result.shots},
          {"bos", result.bos},
          {"questions", summary.micro.questions},
          {"accuracy",
           {{"micro", summary.micro.value()},
            {"macro_subjects", summary.macro_subjects},
            {"standard_error", optional_number(summary.micro_error)}}},
          {"categories", categories},
          {"subjects", subjects},
          {"cut_prompts", result.cut_prompts},
          {"tokens", result.tokens},
          {"seconds", result.seconds},
          {"tokens_per_second", result.seconds > 0 ? static_cast<double>(result.tokens) / result.seconds : 0.0}};
}

std::string details_line(const MmluResult& result, const MmluAnswer& answer) {
  const auto letter = [](int index) { return std::string(1, static_cast<char>('A' + index)); };
  const nlohmann::json line = {{"subject", result.subjects[answer.subject]},
                               {"index", answer.index},
                               {"prompt_tokens", answer.prompt_tokens},
                               {"cut_tokens", answer.cut_tokens},
                               {"shots", answer.shots},
                               {"scores", answer.scores},
                               {"prediction", letter(answer.prediction)},
                               {"answer", letter(answer.answer)}};
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);  // a subject is a file's name: any bytes
}

}  // namespace qalora::eval
