// MMLU under three protocols, which differ in the prompt, in what is compared, and in what happens to a prompt that is
// too long.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qalora/eval/mmlu_data.h"
#include "qalora/model/llama.h"
#include "qalora/text/tokenizer.h"

namespace qalora::eval {

struct MmluAnswer {
  size_t subject = 0;              // into MmluResult::subjects
  int64_t index = 0;               // MmluQuestion::index
  int64_t prompt_tokens = 0;       // as run, after any cut
  int64_t cut_tokens = 0;          // qlora: taken off the right; lm-eval: off the left
  int64_t shots = 0;               // worked examples that the model sees whole
  int64_t dropped_shots = 0;       // hendrycks
  std::array<double, 4> scores{};  // hendrycks, qlora: logits of the letters; lm-eval: summed log-likelihoods
  int prediction = 0, answer = 0;  // 0 .. 3; of equal scores the first wins
};

struct MmluResult {
  Protocol protocol = Protocol::kHendrycks;
  int64_t shots = 0;  // asked for
  bool bos =
      false;  // prompts begin with BOS: where the tokenizer adds it; always with qlora, whose callback writes it itself
  std::vector<std::string> subjects;
  std::vector<MmluAnswer> answers;  // in the order of the files
  int64_t cut_prompts = 0;          // prompts that lost tokens or worked examples
  int64_t tokens = 0;               // of all prompts, as run
  double seconds = 0;
};

// subjects: as read_mmlu read them for this protocol. DataError where a question alone does not fit (hendrycks), a
// letter is not one token (hendrycks, qlora), or a score is not finite.
MmluResult run_mmlu(model::Llama& model, const text::Tokenizer& tokenizer, const std::vector<MmluSubject>& subjects,
                    Protocol protocol, int64_t batch_tokens);

// Right answers among questions.
struct Accuracy {
  int64_t questions = 0, correct = 0;
  double value() const { return static_cast<double>(correct) / static_cast<double>(questions); }
};
// Over groups of questions, as the harness pools its subjects: sample variance inside each; nothing for one question a
// group.
std::optional<double> standard_error(std::span<const Accuracy> groups);

struct MmluSummary {
  Accuracy micro;
  double macro_subjects = 0;
  std::optional<double> micro_error;
  std::vector<Accuracy> subjects;                           // as MmluResult::subjects
  std::array<Accuracy, std::size(kCategories)> categories;  // questions == 0: absent
};
MmluSummary summarise(const MmluResult& result);

// The --json document, and one line of --details (without its line break).
nlohmann::json to_json(const MmluResult& result);
std::string details_line(const MmluResult& result, const MmluAnswer& answer);

}  // namespace qalora::eval
