#include "qalora/text/template.h"

#include <algorithm>

#include "chat.h"
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

std::string alpaca_prompt(std::string_view instruction, std::string_view input, std::string_view response) {
  if (input.empty()) {
    return message(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
        "### Instruction:\n", instruction, "\n\n", response);
  }
  return message("Below is an instruction that describes a task, paired with an input that provides further context. ",
                 "Write a response that appropriately completes the request.\n\n### Instruction:\n", instruction,
                 "\n\n### Input:\n", input, "\n\n", response);
}

void cut(Example& example, int64_t limit) {
  const int64_t length = std::ssize(example.input_ids);
  if (limit <= 0 || length <= limit) return;
  example.cut = true;
  example.cut_tokens = length - limit;
  example.input_ids.resize(limit);
  example.labels.resize(limit);
}

std::string request(std::string_view instruction, std::string_view input) {
  return input.empty() ? std::string(instruction) : message(instruction, "\n", input);
}

void add_bos(ExampleBuilder& builder, const Tokenizer& tokenizer) {
  if (tokenizer.adds_bos()) builder.add_id(tokenizer.bos_id(), false);
}

// One request and its answer under a template without turns.
void add_exchange(ExampleBuilder& builder, const Record& record, TemplateKind kind) {
  const std::string prompt = render_prompt(kind, record.instruction, record.input);
  builder.add_text(prompt, false);
  add_answer(builder, chat_style(kind, ""), record.output, prompt.empty() || ends_with_blank(prompt));
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
  switch (kind) {
    case TemplateKind::kAlpaca: return alpaca_prompt(instruction, input, "### Response:\n");
    case TemplateKind::kAlpacaPaper: return alpaca_prompt(instruction, input, "### Response: ");
    case TemplateKind::kNone: return request(instruction, input);
    case TemplateKind::kChat: break;
  }
  return message("### Human: ", request(instruction, input), "\n### Assistant:");
}

int64_t Example::trained_tokens() const {
  if (labels.empty()) return 0;
  return std::count_if(labels.begin() + 1, labels.end(), [](int64_t label) { return label != kIgnore; });
}

Example make_token_example(const Record& record, const ExampleOptions& options) {
  QALORA_CHECK(record.input_ids.size() == record.labels.size(), record.input_ids.size(), " ids and ", record.labels.size(),
               " labels");
  Example example;
  example.input_ids = record.input_ids;
  example.labels = options.train_on_prompt ? record.input_ids : record.labels;
  cut(example, options.sequence_length);
  return example;
}

Example make_example(const Tokenizer& tokenizer, const Record& record, const ExampleOptions& options) {
  if (!record.input_ids.empty()) return make_token_example(record, options);
  ExampleBuilder builder(tokenizer);
  add_bos(builder, tokenizer);
  if (!record.text.empty()) {
    builder.add_text(record.text, true);
    builder.add_id(tokenizer.eos_id(), true);
  } else if (!record.turns.empty()) {
    add_turns(builder, chat_style(options.kind, tokenizer.chat_template()), record.turns, /*open_answer=*/false);
  } else if (options.kind == TemplateKind::kChat) {
    const std::vector<Turn> turns = {{"user", request(record.instruction, record.input)}, {"assistant", record.output}};
    add_turns(builder, chat_style(options.kind, tokenizer.chat_template()), turns, /*open_answer=*/false);
  } else {
    add_exchange(builder, record, options.kind);
  }
  Example example = builder.take();
  end_with_stop(example, tokenizer);
  if (options.train_on_prompt) example.labels = example.input_ids;
  cut(example, options.sequence_length);
  return example;
}

std::vector<int64_t> make_prompt(const Tokenizer& tokenizer, TemplateKind kind, std::string_view text) {
  ExampleBuilder builder(tokenizer);
  add_bos(builder, tokenizer);
  if (kind == TemplateKind::kChat) {
    add_turns(builder, chat_style(kind, tokenizer.chat_template()), {{"user", std::string(text)}}, /*open_answer=*/true);
  } else {
    builder.add_text(render_prompt(kind, text, ""), false);
  }
  return builder.take().input_ids;
}

}  // namespace qalora::text
