#include "chat.h"

#include <array>
#include <utility>

#include "blanks.h"
#include "qalora/core/error.h"
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
  return {.system_before = {"<|im_start|>", "system\n"},
          .system_after = {"<|im_end|>", "\n"},
          .user_before = {"<|im_start|>", "user\n"},
          .user_after = {"<|im_end|>", "\n"},
          .answer_before = {"<|im_start|>", "assistant\n"},
          .answer_after = {"<|im_end|>"},
          .between = {"\n"}};
}

ChatStyle llama3_style() {
  return {.system_before = {"<|start_header_id|>", "system", "<|end_header_id|>", "\n\n"},
          .system_after = {"<|eot_id|>"},
          .user_before = {"<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"},
          .user_after = {"<|eot_id|>"},
          .answer_before = {"<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"},
          .answer_after = {"<|eot_id|>"}};
}

ChatStyle zephyr_style() {
  return {.system_before = {"<|system|>", "\n"},
          .system_after = {"<eos>", "\n"},
          .user_before = {"<|user|>", "\n"},
          .user_after = {"<eos>", "\n"},
          .answer_before = {"<|assistant|>", "\n"},
          .answer_after = {"<eos>"},
          .between = {"\n"}};
}

ChatStyle plain_style() {
  return {.system_before = {"### System: "},
          .system_after = {"\n"},
          .user_before = {"### Human: "},
          .user_after = {"\n"},
          .answer_before = {"### Assistant:"},
          .answer_lead = " ",
          .answer_after = {"<eos>"},
          .between = {"\n"}};
}

ChatStyle alpaca_style(const char* response, bool answer_apart) {
  return {.opening = kAlpacaIntro,
          .system_after = {"\n\n"},
          .user_before = {"### Instruction:\n"},
          .user_after = {"\n\n"},
          .answer_before = {response},
          .answer_after = {"<eos>"},
          .between = {"\n\n"},
          .system_in_user = true,
          .answer_apart = answer_apart};
}

ChatStyle bare_style() {
  return {.system_after = {"\n"}, .answer_lead = " ", .answer_after = {"<eos>"}, .between = {"\n"}};
}

// Zephyr's user turn ends with end-of-sequence: Tulu's has nothing there and Phi-3's "<|end|>", under the same markers.
bool is_zephyr(std::string_view text) {
  const size_t user = text.find("<|user|>");
  if (user == std::string_view::npos || text.find("<|assistant|>") == std::string_view::npos) return false;
  const size_t end = text.find("eos_token", user);
  return end != std::string_view::npos && end < std::min(text.find("<|", user + 1), text.find("{%", user));
}

bool has(std::string_view text, std::string_view marker) { return text.find(marker) != std::string_view::npos; }

struct Family {
  const char* name;
  ChatStyle (*style)();
  bool (*matches)(std::string_view chat_template);
};

// Told by the markers in the template's text, the first that fits.
const Family* family_of(std::string_view chat_template) {
  static constexpr std::array<Family, 5> kFamilies = {{
      {"Llama-3", llama3_style, [](std::string_view text) { return has(text, "<|start_header_id|>"); }},
      {"ChatML", chatml_style, [](std::string_view text) { return has(text, "<|im_start|>"); }},
      {"Llama-2", llama2_style, [](std::string_view text) { return has(text, "[INST]") && has(text, "<<SYS>>"); }},
      {"Mistral", mistral_style, [](std::string_view text) { return has(text, "[INST]"); }},
      {"Zephyr", zephyr_style, is_zephyr},
  }};
  for (const Family& family : kFamilies) {
    if (family.matches(chat_template)) return &family;
  }
  return nullptr;
}

const Family& known_family(const Tokenizer& tokenizer) {
  const Family* family = family_of(tokenizer.chat_template());
  QALORA_REQUIRE(
      family != nullptr, DataError, tokenizer.folder().string(),
      ": its chat_template is none that is known; expected the markers of Llama-2, Mistral, ChatML, Zephyr or Llama-3. Set "
      "template to alpaca or none, or remove chat_template from tokenizer_config.json to train \"### Human\"");
  return *family;
}

}  // namespace

ChatStyle block_style(TemplateKind kind) {
  switch (kind) {
    case TemplateKind::kAlpaca: return alpaca_style("### Response:\n", false);
    case TemplateKind::kAlpacaPaper: return alpaca_style("### Response: ", true);
    case TemplateKind::kNone: return bare_style();
    case TemplateKind::kChat: break;
  }
  return plain_style();
}

ChatStyle chat_style(TemplateKind kind, const Tokenizer& tokenizer) {
  const bool own = kind == TemplateKind::kChat && !tokenizer.chat_template().empty();
  return own ? known_family(tokenizer).style() : block_style(kind);
}

std::string chat_template_name(const Tokenizer& tokenizer) {
  return tokenizer.chat_template().empty() ? "" : known_family(tokenizer).name;
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

bool ends_with_blank(std::string_view text) { return !text.empty() && is_blank(text.back()); }

void add_answer(ExampleBuilder& builder, const ChatStyle& style, std::string_view answer, bool blank_before) {
  const bool own_blank = !answer.empty() && is_blank(answer.front());
  if (!blank_before && !own_blank) builder.add_text(style.answer_lead, true);
  style.answer_apart ? builder.add_apart(answer, true) : builder.add_text(answer, true);
  builder.add_markers(style.answer_after, true);
}

void add_turns(ExampleBuilder& builder, const ChatStyle& style, const std::vector<Turn>& turns, bool open_answer) {
  builder.add_text(style.opening, false);
  std::string system;  // waits for the user turn that takes it in
  bool after_answer = false;
  bool open_line = false;  // the text so far is a user's, and nothing parts it from the next turn
  bool blank = false;      // white space stands where an answer begins
  const auto open = [&](bool request) {
    if (std::exchange(after_answer, false)) builder.add_markers(style.between, false);
    if (std::exchange(open_line, false) && request) builder.add_text("\n", false);
  };
  const auto add_request = [&](const std::string& content, bool is_user) {
    open(/*request=*/true);
    builder.add_markers(is_user ? style.user_before : style.system_before, false);
    if (is_user && !system.empty()) {
      builder.add_markers(style.system_before, false);
      builder.add_text(std::exchange(system, {}), false);
      builder.add_markers(style.system_after, false);
    }
    builder.add_text(content, false);
    builder.add_markers(is_user ? style.user_after : style.system_after, false);
    open_line = is_user && style.user_after.empty();
    const auto& after = is_user ? style.user_after : style.system_after;
    blank = style.answer_before.empty() && ends_with_blank(after.empty() ? content : after.back());
  };
  const auto flush_system = [&] {
    if (!system.empty()) add_request(std::exchange(system, {}), /*is_user=*/true);
  };
  for (const Turn& turn : turns) {
    if (turn.role == "system" && style.system_in_user) {
      system += (system.empty() ? "" : "\n\n") + turn.content;
    } else if (turn.role != "assistant") {
      add_request(turn.content, turn.role == "user");
    } else {
      flush_system();
      open(/*request=*/false);
      builder.add_markers(style.answer_before, false);
      add_answer(builder, style, turn.content, blank);
      after_answer = true;
      blank = false;
    }
  }
  flush_system();
  if (!open_answer) return;
  open(/*request=*/false);
  builder.add_markers(style.answer_before, false);
}

}  // namespace qalora::text
