#include "qalora/text/template.h"

#include <algorithm>

#include "chat.h"
#include "qalora/core/checked.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/text/batch.h"

namespace qalora::text {
namespace {

struct Name {
  TemplateKind kind;
  const char* name;
};
constexpr Name kNames[] = {{TemplateKind::kAlpaca, "alpaca"},
                           {TemplateKind::kAlpacaPaper, "alpaca-paper"},
                           {TemplateKind::kNone, "none"},
                           {TemplateKind::kChat, "chat"}};

std::string request(std::string_view instruction, std::string_view input) {
  return input.empty() ? std::string(instruction) : message(instruction, "\n", input);
}

void cut(Example& example, int64_t limit) {
  const int64_t length = std::ssize(example.input_ids);
  if (limit <= 0 || length <= limit) return;
  example.cut_sequence = length - limit;
  example.input_ids.resize(limit);
  example.labels.resize(limit);
}

// Prompt and answer each to its own length, as the official code does: a long prompt takes nothing from its answer.
void cut_parts(Example& example, const ExampleOptions& options) {
  if (options.source_length <= 0 && options.target_length <= 0) return;
  size_t kept = 0;
  int64_t run = 0;  // tokens of this part so far
  bool was_trained = false;
  for (size_t t = 0; t < example.input_ids.size(); ++t) {
    const bool trained = example.labels[t] != kIgnore;
    run = trained == was_trained ? run + 1 : 1;
    was_trained = trained;
    const int64_t limit = trained ? options.target_length : options.source_length;
    if (limit > 0 && run > limit) {
      ++(trained ? example.cut_target : example.cut_source);
      continue;
    }
    example.input_ids[kept] = example.input_ids[t];
    example.labels[kept++] = example.labels[t];
  }
  example.input_ids.resize(kept);
  example.labels.resize(kept);
}

void require_end(const Tokenizer& tokenizer) {
  QALORA_REQUIRE(
      tokenizer.eos_id() >= 0, DataError, tokenizer.folder().string(),
      ": the tokenizer has no end-of-sequence token, so no answer could end; set 'eos_token' in tokenizer_config.json");
}

void add_bos(ExampleBuilder& builder, const Tokenizer& tokenizer) {
  if (tokenizer.adds_bos()) builder.add_id(tokenizer.bos_id(), false);
}

// One request and its answer under a template without turns.
void add_exchange(ExampleBuilder& builder, const Record& record, TemplateKind kind) {
  const std::string prompt = render_prompt(kind, record.instruction, record.input);
  builder.add_text(prompt, false);
  add_answer(builder, block_style(kind), record.output, prompt.empty() || ends_with_blank(prompt));
}

// ChatML and LLaMA 3 end an answer with a token of their own; where generation would not stop at it, EOS follows.
void end_with_stop(Example& example, const Tokenizer& tokenizer) {
  const auto& stops = tokenizer.stop_ids();
  const bool answered = !example.labels.empty() && example.labels.back() != kIgnore;
  if (!answered || stops.empty() || std::find(stops.begin(), stops.end(), example.labels.back()) != stops.end()) return;
  example.input_ids.push_back(tokenizer.eos_id());
  example.labels.push_back(tokenizer.eos_id());
}

}  // namespace

std::string template_name(TemplateKind kind) {
  for (const Name& entry : kNames) {
    if (entry.kind == kind) return entry.name;
  }
  throw InternalError("internal error: a template without a name");
}

TemplateKind parse_template(std::string_view name) {
  std::vector<std::string> names;
  for (const Name& entry : kNames) {
    if (name == entry.name) return entry.kind;
    names.emplace_back(entry.name);
  }
  throw UserError(message("unknown template '", name, "'", did_you_mean(name, names), "; one of: ", join(names, ", ")));
}

std::string render_prompt(TemplateKind kind, std::string_view instruction, std::string_view input) {
  const ChatStyle style = block_style(kind);
  const std::string response = join(style.answer_before, "");
  const bool alpaca = kind == TemplateKind::kAlpaca || kind == TemplateKind::kAlpacaPaper;
  if (alpaca && !input.empty()) {
    return message(
        "Below is an instruction that describes a task, paired with an input that provides further context. ",
        "Write a response that appropriately completes the request.\n\n### Instruction:\n", instruction,
        "\n\n### Input:\n", input, "\n\n", response);
  }
  return message(style.opening, join(style.user_before, ""), request(instruction, input), join(style.user_after, ""),
                 response);
}

int64_t Example::trained_tokens() const {
  if (labels.empty()) return 0;
  return std::count_if(labels.begin() + 1, labels.end(), [](int64_t label) { return label != kIgnore; });
}

Example make_token_example(const Record& record, const ExampleOptions& options) {
  QALORA_CHECK(record.input_ids.size() == record.labels.size(), record.input_ids.size(), " ids and ",
               record.labels.size(), " labels");
  Example example;
  example.input_ids = record.input_ids;
  example.labels = options.train_on_prompt ? record.input_ids : record.labels;
  cut(example, options.sequence_length);
  return example;
}

Example make_example(const Tokenizer& tokenizer, const Record& record, const ExampleOptions& options) {
  if (!record.input_ids.empty()) return make_token_example(record, options);
  if (!record.text.empty()) return text_window(text_ids(tokenizer, record.text), 0, options.sequence_length);
  require_end(tokenizer);
  ExampleBuilder builder(tokenizer);
  add_bos(builder, tokenizer);
  if (!record.turns.empty()) {
    add_turns(builder, chat_style(options.kind, tokenizer), record.turns, /*open_answer=*/false);
  } else if (options.kind == TemplateKind::kChat) {
    const std::vector<Turn> turns = {{"user", request(record.instruction, record.input)}, {"assistant", record.output}};
    add_turns(builder, chat_style(options.kind, tokenizer), turns, /*open_answer=*/false);
  } else {
    add_exchange(builder, record, options.kind);
  }
  Example example = builder.take();
  end_with_stop(example, tokenizer);
  cut_parts(example, options);
  if (options.train_on_prompt) example.labels = example.input_ids;
  cut(example, options.sequence_length);
  return example;
}

std::vector<int64_t> text_ids(const Tokenizer& tokenizer, std::string_view text) {
  require_end(tokenizer);
  ExampleBuilder builder(tokenizer);
  add_bos(builder, tokenizer);
  builder.add_text(text, true);
  builder.add_id(tokenizer.eos_id(), true);
  return builder.take().input_ids;
}

Example text_window(const std::vector<int64_t>& ids, int64_t window, int64_t length) {
  const int64_t total = std::ssize(ids);
  const bool whole = length <= 1 || total <= length;
  const int64_t stride = whole ? total : length - 1;  // the last token of a window is the first of the next
  Example example;
  example.windows = whole ? 1 : ceil_div(total - 1, stride);
  QALORA_CHECK(window >= 0 && window < example.windows, "window ", window, " of ", example.windows);
  const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(window * stride);
  const int64_t count = whole ? total : std::min(length, total - window * stride);
  example.input_ids.assign(begin, begin + static_cast<std::ptrdiff_t>(count));
  example.labels = example.input_ids;
  example.labels[0] = kIgnore;  // the window before predicts it
  return example;
}

std::vector<int64_t> make_prompt(const Tokenizer& tokenizer, TemplateKind kind, std::string_view text) {
  ExampleBuilder builder(tokenizer);
  add_bos(builder, tokenizer);
  if (kind == TemplateKind::kChat) {
    add_turns(builder, chat_style(kind, tokenizer), {{"user", std::string(text)}}, /*open_answer=*/true);
  } else {
    builder.add_text(render_prompt(kind, text, ""), false);
  }
  return builder.take().input_ids;
}

}  // namespace qalora::text
