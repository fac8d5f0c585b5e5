// Prompt templates: how a record becomes the text in front of the answer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "qalora/text/dataset.h"
#include "qalora/text/tokenizer.h"

namespace qalora::text {

enum class TemplateKind { kAlpaca, kAlpacaPaper, kNone, kChat };
// "alpaca", "alpaca-paper" (the paper's code: a trailing blank after "### Response:", prompt and answer encoded apart),
// "none", "chat" (the model's own chat template where it is one of those known, else "### Human/Assistant" turns)
std::string template_name(TemplateKind kind);
TemplateKind parse_template(std::string_view name);  // UserError with the nearest name

// The text in front of the answer for one user request.
std::string render_prompt(TemplateKind kind, std::string_view instruction, std::string_view input);

// A record as ids with a mask: label = id where the answer (and its end-of-sequence) stands, -100 elsewhere.
struct Example {
  std::vector<int64_t> input_ids;  // [length], BOS first where the tokenizer adds it
  std::vector<int64_t> labels;     // [length]; labels[t] is what position t holds (the shift happens in the loss)
  bool cut = false;                // longer than the limit: cut on the right
  int64_t cut_tokens = 0;
  int64_t trained_tokens() const;  // labels that are not -100, position 0 excluded
};

struct ExampleOptions {
  TemplateKind kind = TemplateKind::kAlpaca;
  int64_t sequence_length = 0;     // 0: no limit
  bool train_on_prompt = false;    // loss on every token
};

Example make_example(const Tokenizer& tokenizer, const Record& record, const ExampleOptions& options);

// The prompt of `generate`: BOS, template, as ids.
std::vector<int64_t> make_prompt(const Tokenizer& tokenizer, TemplateKind kind, std::string_view text);

}  // namespace qalora::text
