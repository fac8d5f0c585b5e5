// Chats as ids: which markers stand around each turn, and which ids are trained.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "qalora/text/template.h"

namespace qalora::text {

// The strings around turns. A marker that is one of the tokenizer's special tokens becomes its id, else plain text. The
// blank in front of an answer is trained with it (answer_lead), because it is part of the answer's first piece.
struct ChatStyle {
  std::string opening = {};  // once, in front of everything
  std::vector<std::string> system_before = {}, system_after = {};
  std::vector<std::string> user_before = {}, user_after = {};
  std::vector<std::string> answer_before = {};  // untrained, what `generate` ends with
  std::string answer_lead = {};                 // trained, in front of the answer's text
  std::vector<std::string> answer_after = {};   // trained; "<eos>" is the tokenizer's end-of-sequence
  std::vector<std::string> between = {};        // untrained, in front of the turn after an answer; knows "<bos>"
  bool system_in_user = false;                  // the system text stands inside the user turn behind it
  bool answer_apart = false;                    // answers are encoded as if nothing stood before them
};

// The template's own block; kChat: "### Human" and "### Assistant".
ChatStyle block_style(TemplateKind kind);
// The same, but kChat by the tokenizer's chat template where it has one. DataError when its text is none that is known.
ChatStyle chat_style(TemplateKind kind, const Tokenizer& tokenizer);

// Builds ids and labels from text and special tokens in order.
class ExampleBuilder {
 public:
  explicit ExampleBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void add_text(std::string_view text, bool trained);
  void add_id(int64_t id, bool trained);
  void add_markers(const std::vector<std::string>& markers, bool trained);
  // Encoded as if nothing stood before it, as the paper's code does with an answer.
  void add_apart(std::string_view text, bool trained);
  Example take();

 private:
  void flush();

  const Tokenizer& tokenizer_;
  Example example_;
  std::string pending_;  // text not yet encoded, all of one kind
  bool pending_trained_ = false;
  enum class Before { kNothing, kText, kSpecial } before_ = Before::kNothing;
};

bool ends_with_blank(std::string_view text);

// An answer with what belongs to it, all trained. blank_before: no lead is wanted, because a blank or nothing stands in
// front.
void add_answer(ExampleBuilder& builder, const ChatStyle& style, std::string_view answer, bool blank_before);

// The turns, none of them lost: a system text that belongs into a user turn waits for one, and stands as a user turn
// where none comes before the next answer. open_answer: ends where the assistant begins to speak.
void add_turns(ExampleBuilder& builder, const ChatStyle& style, const std::vector<Turn>& turns, bool open_answer);

}  // namespace qalora::text
