// Multiple choice by log-likelihood: {"context": "...", "choices": ["...", ...], "answer": i} a line.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/model/llama.h"
#include "qalora/text/tokenizer.h"

namespace qalora::eval {

struct ChoiceQuestion {
  std::string context;
  std::vector<std::string> choices;  // at least two, none blank
  int64_t answer = 0;
  std::string where;  // "file:line"
};

std::vector<ChoiceQuestion> read_choices(const fs::path& path, int64_t limit);  // limit 0: all

struct ChoiceAnswer {
  std::vector<double> scores;      // log-likelihood of each choice
  std::vector<double> normalised;  // per UTF-8 byte of the choice, the blank in front not counted
  int64_t prediction = 0, prediction_norm = 0, answer = 0;  // of equal scores the first wins
  int64_t prompt_tokens = 0, cut_tokens = 0;
};

struct ChoiceResult {
  std::vector<ChoiceAnswer> answers;  // in the file's order
  int64_t correct = 0, correct_norm = 0;
  int64_t cut_prompts = 0;
  int64_t tokens = 0;  // of the contexts, as run
  double seconds = 0;
};

// A blank is put between context and choice unless one of them brings it.
ChoiceResult run_choices(model::Llama& model, const text::Tokenizer& tokenizer,
                         const std::vector<ChoiceQuestion>& questions, int64_t batch_tokens);

nlohmann::json to_json(const ChoiceResult& result);
std::string details_line(const ChoiceResult& result, size_t index);

}  // namespace qalora::eval
