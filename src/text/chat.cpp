#include "chat.h"

#include <utility>

#include "qalora/text/batch.h"

namespace qalora::text {
namespace {

constexpr std::string_view kEos = "<eos>", kBos = "<bos>";

constexpr const char* kAlpacaIntro =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n";

ChatStyle llama2_style() {
  return {.system_before = {"<<SYS>>\n"},
          .system_after = {"\n<</SYS>>\n\n"},
          .user_before = {"[INST] "},
          .user_after = {" [/INST]"},
          .answer_lead = " ",
          .answer_after = {" ", "<eos>"},
          .between = {"<bos>"},
          .system_in_user = true};
}

// Mistral's: Llama-2's marks without a system text, one BOS at the front and no blank behind an answer.
ChatStyle mistral_style() {
  return {.system_after = {"\n\n"},
          .user_before = {"[INST] "},
          .user_after = {" [/INST]"},
          .answer_lead = " ",
          .answer_after = {"<eos>"},
          .system_in_user = true};
}

ChatStyle chatml_style() {
  return {.system_before = {"<|im_start|>", "system\n"}, .system_after = {"<|im_end|>", "\n"},
          .user_before = {"<|im_start|>", "user\n"}, .user_after = {"<|im_end|>", "\n"},
          .answer_before = {"<|im_start|>", "assistant\n"}, .answer_after = {"<|im_end|>"}, .between = {"\n"}};
}

ChatStyle llama3_style() {
  return {.system_before = {"<|start_header_id|>", "system", "<|end_header_id|>", "\n\n"}, .system_after = {"<|eot_id|>"},
          .user_before = {"<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"}, .user_after = {"<|eot_id|>"},
          .answer_before = {"<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"}, .answer_after = {"<|eot_id|>"}};
}

ChatStyle zephyr_style() {
  return {.system_before = {"<|system|>", "\n"}, .system_after = {"<eos>", "\n"}, .user_before = {"<|user|>", "\n"},
          .user_after = {"<eos>", "\n"}, .answer_before = {"<|assistant|>", "\n"}, .answer_after = {"<eos>"}, .between = {"\n"}};
}

ChatStyle plain_style() {
  return {.system_before = {"### System: "}, .system_after = {"\n"}, .user_before = {"### Human: "}, .user_after = {"\n"},
          .answer_before = {"### Assistant:"}, .answer_lead = " ", .answer_after = {"<eos>"}, .between = {"\n"}};
}

ChatStyle alpaca_style(const char* response, bool answer_apart) {
  return {.opening = kAlpacaIntro, .system_after = {"\n\n"}, .user_before = {"### Instruction:\n"}, .user_after = {"\n\n"},
          .answer_before = {response}, .answer_after = {"<eos>"}, .between = {"\n\n"}, .system_in_user = true,
          .answer_apart = answer_apart};
}

ChatStyle bare_style() {
  return {.system_after = {"\n"}, .answer_lead = " ", .answer_after = {"<eos>"}, .between = {"\n"}};
}

constexpr std::string_view kBlanks = " \n\t\r";

}  // namespace

ChatStyle chat_style(TemplateKind kind, std::string_view chat_template) {
  switch (kind) {
    case TemplateKind::kAlpaca: return alpaca_style("### Response:\n", false);
    case TemplateKind::kAlpacaPaper: return alpaca_style("### Response: ", true);
    case TemplateKind::kNone: return bare_style();
    case TemplateKind::kChat: break;
  }
  const auto has = [&](std::string_view marker) { return chat_template.find(marker) != std::string_view::npos; };
  if (has("<|start_header_id|>")) return llama3_style();
  if (has("<|im_start|>")) return chatml_style();
  if (has("[INST]")) return has("<<SYS>>") ? llama2_style() : mistral_style();
  if (has("<|user|>")) return zephyr_style();
  return plain_style();
}

void ExampleBuilder::add_text(std::string_view text, bool trained) {
  if (text.empty()) return;
  if (trained != pending_trained_) flush();
  pending_trained_ = trained;
  pending_ += text;
}

void ExampleBuilder::add_id(int64_t id, bool trained) {
  flush();
  if (id < 0) return;
  example_.input_ids.push_back(id);
  example_.labels.push_back(trained ? id : kIgnore);
  // The BOS at the very front is no special token in the text: what follows begins the text.
  const bool opening = example_.input_ids.size() == 1 && id == tokenizer_.bos_id();
  before_ = opening ? Before::kNothing : Before::kSpecial;
}

void ExampleBuilder::add_markers(const std::vector<std::string>& markers, bool trained) {
  for (const std::string& marker : markers) {
    const int64_t id = marker == kEos   ? tokenizer_.eos_id()
                       : marker == kBos ? tokenizer_.bos_id()
                                        : tokenizer_.special_id(marker);
    if (id >= 0) {
      add_id(id, trained);
    } else if (marker != kEos && marker != kBos) {
      add_text(marker, trained);
    }
  }
}

void ExampleBuilder::add_apart(std::string_view text, bool trained) {
  flush();
  before_ = Before::kNothing;
  add_text(text, trained);
  flush();
}

void ExampleBuilder::flush() {
  if (pending_.empty()) return;
  const std::string text = std::exchange(pending_, {});
  const bool prefix = before_ == Before::kNothing || (before_ == Before::kSpecial && tokenizer_.legacy());
  for (const int64_t id : prefix ? tokenizer_.encode(text, {}) : tokenizer_.encode_continuation(text)) {
    example_.input_ids.push_back(id);
    example_.labels.push_back(pending_trained_ ? id : kIgnore);
  }
  before_ = Before::kText;
}

Example ExampleBuilder::take() {
  flush();
  return std::exchange(example_, {});
}

bool ends_with_blank(std::string_view text) { return !text.empty() && kBlanks.find(text.back()) != std::string_view::npos; }

void add_answer(ExampleBuilder& builder, const ChatStyle& style, std::string_view answer, bool blank_before) {
  const bool own_blank = !answer.empty() && kBlanks.find(answer.front()) != std::string_view::npos;
  if (!blank_before && !own_blank) builder.add_text(style.answer_lead, true);
  style.answer_apart ? builder.add_apart(answer, true) : builder.add_text(answer, true);
  builder.add_markers(style.answer_after, true);
}

void add_turns(ExampleBuilder& builder, const ChatStyle& style, const std::vector<Turn>& turns, bool open_answer) {
  builder.add_text(style.opening, false);
  const Turn* system = nullptr;  // waits for the user turn that takes it in
  bool after_answer = false;
  bool blank = false;            // the text so far ends with white space
  const auto open = [&] {
    if (std::exchange(after_answer, false)) builder.add_markers(style.between, false);
  };
  for (const Turn& turn : turns) {
    if (turn.role == "system" && style.system_in_user) {
      system = &turn;
    } else if (turn.role == "system" || turn.role == "user") {
      const bool is_user = turn.role == "user";
      open();
      builder.add_markers(is_user ? style.user_before : style.system_before, false);
      if (is_user && system != nullptr) {
        builder.add_markers(style.system_before, false);
        builder.add_text(std::exchange(system, nullptr)->content, false);
        builder.add_markers(style.system_after, false);
      }
      builder.add_text(turn.content, false);
      builder.add_markers(is_user ? style.user_after : style.system_after, false);
      blank = ends_with_blank(turn.content) && style.user_after.empty();
    } else {
      open();
      builder.add_markers(style.answer_before, false);
      add_answer(builder, style, turn.content, blank);
      after_answer = true;
      blank = false;
    }
  }
  if (open_answer) {
    open();
    builder.add_markers(style.answer_before, false);
  }
}

}  // namespace qalora::text
