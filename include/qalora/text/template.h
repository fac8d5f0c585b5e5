// Prompt templates: how a record becomes the text in front of the answer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "qalora/text/dataset.h"
#include "qalora/text/tokenizer.h"

namespace qalora::text {

// alpaca        Stanford Alpaca's two prompts, "### Response:" and a line break, then the answer
// alpaca-paper  the same with "### Response: " as the paper's code has it, prompt and answer encoded apart: the answer
//               gets a dummy prefix of its own, so there are two blank pieces between them
// none          the instruction (a line break and the input, where there is one); one blank parts prompt and answer
//               where neither brings its own
// chat          special tokens and line breaks of the model's chat template where its text is Llama-2's, Mistral's,
//               ChatML's, Zephyr's or Llama-3's (recognised by its markers; no template is executed), refused where it
//               is another; "### Human: " and "### Assistant:" where the model has none
// A chat under alpaca or none repeats the block for each exchange; every answer is trained and ends with
// end-of-sequence.
enum class TemplateKind { kAlpaca, kAlpacaPaper, kNone, kChat };
std::string template_name(TemplateKind kind);
TemplateKind parse_template(std::string_view name);  // UserError with the nearest name

// Whose chat template the tokenizer has: "Llama-2", "Mistral", "ChatML", "Zephyr", "Llama-3"; "" when it has none.
// DataError for others.
std::string chat_template_name(const Tokenizer& tokenizer);

// The text in front of the answer for one user request; kChat: without a model's template, so "### Human".
std::string render_prompt(TemplateKind kind, std::string_view instruction, std::string_view input);

// A record as ids with a mask: label = id where the answer (and its end-of-sequence) stands, -100 elsewhere.
struct Example {
  std::vector<int64_t> input_ids;  // [length], BOS first where the tokenizer adds it
  std::vector<int64_t> labels;     // [length]; labels[t] is what position t holds (the shift happens in the loss)
  // Tokens that each limit took, on the right of a prompt, of an answer and of the whole.
  int64_t cut_source = 0, cut_target = 0, cut_sequence = 0;
  int64_t windows = 1;  // plain text: how many examples the whole of it gives
  int64_t cut_tokens() const { return cut_source + cut_target + cut_sequence; }
  int64_t trained_tokens() const;  // labels that are not -100, position 0 excluded
};

struct ExampleOptions {
  TemplateKind kind = TemplateKind::kAlpaca;
  int64_t sequence_length = 0;  // 0: no limit
  int64_t source_length = 0;    // each stretch that is not trained on (a prompt) is cut to this; 0: no limit of its own
  int64_t target_length = 0;    // each answer likewise
  bool train_on_prompt = false;  // loss on every token
};

// The ids of a training prompt are those that make_prompt gives: the answer is encoded behind them, never together with
// them. An example whose answer was cut away has no trained tokens. Plain text (Record::text) needs no template and is
// not cut: this is its first window. DataError when the tokenizer has no end-of-sequence token, without which no answer
// would end.
Example make_example(const Tokenizer& tokenizer, const Record& record, const ExampleOptions& options);
// Format "tokens", where there may be no tokenizer: the record's ids and labels as they are, cut at sequence_length.
Example make_token_example(const Record& record, const ExampleOptions& options);

// Plain text as ids: BOS, the text, end-of-sequence. Longer than `length` it is trained in windows that overlap by one
// token, so that every token but the first is predicted exactly once; length 0: one window.
std::vector<int64_t> text_ids(const Tokenizer& tokenizer, std::string_view text);
Example text_window(const std::vector<int64_t>& ids, int64_t window, int64_t length);

// The prompt of `generate`: BOS, template, as ids.
std::vector<int64_t> make_prompt(const Tokenizer& tokenizer, TemplateKind kind, std::string_view text);

}  // namespace qalora::text
