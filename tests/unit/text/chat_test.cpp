// Chats through make_example and make_prompt: src/text/chat.cpp.
#include <gtest/gtest.h>

#include "qalora/core/error.h"
#include "qalora/text/batch.h"
#include "qalora/text/template.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using namespace qalora::test;
using Ids = std::vector<int64_t>;

const std::vector<Turn> kTurns = {
    {"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Hello"}, {"user", "Bye"}, {"assistant", "So long"}};

constexpr const char* kZephyr = "{{ '<|user|>' + content + eos_token }}{{ '<|assistant|>' + content + eos_token }}";

std::string config(const std::string& marker) {
  return R"({"legacy": false, "chat_template": ")" + marker + R"(", "added_tokens_decoder": {
      "400": {"content": "<|im_start|>", "special": true}, "401": {"content": "<|im_end|>", "special": true}}})";
}

class Chats : public testing::Test {
 protected:
  // The whole chat as text with the trained parts in [[ ]].
  std::string shown(const std::string& tokenizer_config, TemplateKind kind = TemplateKind::kChat,
                    const std::vector<Turn>& turns = kTurns) {
    write_tiny_tokenizer(dir_.path(), tokenizer_config);
    const Tokenizer tokenizer(dir_.path());
    Record record;
    record.turns = turns;
    const Example example = make_example(tokenizer, record, {.kind = kind});
    std::string text;
    bool open = false;
    Ids before;
    for (size_t t = 0; t < example.input_ids.size(); ++t) {
      const bool is_trained = example.labels[t] != kIgnore;
      if (is_trained != open) text += open ? "]]" : "[[";
      open = is_trained;
      const int64_t id = example.input_ids[t];
      const bool special = id <= 2 || id >= 400;
      text += special ? tokenizer.piece(id) : tokenizer.decode_next(before, id);
      before.push_back(id);
    }
    return text + (open ? "]]" : "");
  }
  TempDir dir_;
};

TEST_F(Chats, WithoutATemplateHumanAndAssistant) {
  EXPECT_EQ(
      shown(R"({"legacy": false})"),
      "<s>### System: Be brief.\n### Human: Hi\n### Assistant:[[ Hello</s>]]\n### Human: Bye\n### Assistant:[[ So long</s>]]");
}

TEST_F(Chats, Llama2) {
  EXPECT_EQ(
      shown(config("[INST] <<SYS>>")),
      "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST][[ Hello </s>]]<s>[INST] Bye [/INST][[ So long </s>]]");
}

TEST_F(Chats, MistralHasOneBosAndNoBlankBehindAnAnswer) {
  EXPECT_EQ(shown(config("[INST]")),
            "<s>[INST] Be brief.\n\nHi [/INST][[ Hello</s>]][INST] Bye [/INST][[ So long</s>]]");
}

TEST_F(Chats, ChatMlsMarkersAreTokensAndTheEndIsTrained) {
  EXPECT_EQ(
      shown(config("<|im_start|>")),
      "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello<|im_end|>]]\n"
      "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n[[So long<|im_end|></s>]]");
  const Tokenizer tokenizer(dir_.path());
  const Ids prompt = make_prompt(tokenizer, TemplateKind::kChat, "Hi");
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 400), 2);
  // Where the model stops at <|im_end|> by itself, nothing is put behind it.
  write_file(dir_ / "generation_config.json", R"({"eos_token_id": [2, 401]})");
  EXPECT_TRUE(shown(config("<|im_start|>")).ends_with("[[So long<|im_end|>]]"));
}

TEST_F(Chats, Llama3AndZephyr) {
  EXPECT_EQ(
      shown(config("<|start_header_id|>")),
      "<s><|start_header_id|>system<|end_header_id|>\n\nBe "
      "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello<|eot_id|>]]<|start_header_id|>user<|end_header_id|>\n\nBye<"
      "|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n[[So long<|eot_id|></s>]]");
  EXPECT_EQ(
      shown(config(kZephyr)),
      "<s><|system|>\nBe "
      "brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n[[Hello</s>]]\n<|user|>\nBye</s>\n<|assistant|>\n[[So long</s>]]");
}

TEST_F(Chats, UnderAlpacaAndNoneTheBlockRepeats) {
  EXPECT_EQ(
      shown("{\"legacy\": false}", TemplateKind::kAlpaca),
      "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
      "### Instruction:\nBe brief.\n\nHi\n\n### Response:\n[[Hello</s>]]\n\n### Instruction:\nBye\n\n### Response:\n[[So "
      "long</s>]]");
  EXPECT_EQ(shown("{\"legacy\": false}", TemplateKind::kNone), "<s>Be brief.\nHi[[ Hello</s>]]\nBye[[ So long</s>]]");
}

// A system text in front of an answer, two of them, and one behind everything.
TEST_F(Chats, NoSystemTextVanishes) {
  const std::vector<Turn> alone = {
      {"system", "Be brief."}, {"assistant", "Hello"}, {"user", "Bye"}, {"assistant", "So long"}};
  const std::vector<Turn> two = {
      {"system", "Be brief."}, {"system", "Be kind."}, {"user", "Hi"}, {"assistant", "Hello"}};
  const std::vector<Turn> last = {
      {"user", "Hi"}, {"assistant", "Hello"}, {"user", "Bye"}, {"assistant", "So"}, {"system", "Stop."}};
  EXPECT_EQ(shown(config("[INST] <<SYS>>"), TemplateKind::kChat, alone),
            "<s>[INST] Be brief. [/INST][[ Hello </s>]]<s>[INST] Bye [/INST][[ So long </s>]]");
  EXPECT_EQ(shown(config("[INST] <<SYS>>"), TemplateKind::kChat, two),
            "<s>[INST] <<SYS>>\nBe brief.\n\nBe kind.\n<</SYS>>\n\nHi [/INST][[ Hello </s>]]");
  EXPECT_TRUE(shown(config("[INST]"), TemplateKind::kChat, last).ends_with("[[ So</s>]][INST] Stop. [/INST]"));
  EXPECT_CONTAINS(shown("{}", TemplateKind::kAlpaca, alone),
                  "### Instruction:\nBe brief.\n\n### Response:\n[[Hello</s>]]");
  for (const auto kind :
       {TemplateKind::kAlpaca, TemplateKind::kAlpacaPaper, TemplateKind::kNone, TemplateKind::kChat}) {
    for (const std::string style : {"", "[INST]", "[INST] <<SYS>>", "<|im_start|>", "<|start_header_id|>", kZephyr}) {
      for (const auto& turns : {alone, two, last}) {
        const std::string text = shown(config(style), kind, turns);
        for (const Turn& turn : turns) EXPECT_CONTAINS(text, turn.content);
      }
    }
  }
}

TEST_F(Chats, UnderNoneTurnsStandApart) {
  EXPECT_EQ(shown(R"({"legacy": false})", TemplateKind::kNone,
                  {{"user", "one"}, {"user", "two"}, {"assistant", "three"}, {"user", "x"}}),
            "<s>one\ntwo[[ three</s>]]\nx");
  EXPECT_EQ(
      shown(R"({"legacy": false})", TemplateKind::kNone, {{"user", "one"}, {"system", "two"}, {"assistant", "three"}}),
      "<s>one\ntwo\n[[three</s>]]");
}

TEST_F(Chats, AnUnknownTemplateIsRefused) {
  const std::string phi3 = "{{ '<|user|>' + content + '<|end|>' }}{{ '<|assistant|>' + content }}{{ eos_token }}";
  const std::string tulu = "{{ '<|user|>' + content }}{% elif %}{{ '<|assistant|>' + content + eos_token }}";
  for (const std::string& unknown : {std::string("<start_of_turn>"), std::string("<|user|>"), phi3, tulu}) {
    const std::string what = error_of<DataError>([&] { shown(config(unknown)); });
    EXPECT_CONTAINS(what, dir_.path().string());
    EXPECT_CONTAINS(what, "Zephyr");
    EXPECT_EQ(shown(config(unknown), TemplateKind::kNone),
              shown(config(""), TemplateKind::kNone));  // must differ: nobody asks for it
  }
  const auto name = [&](const std::string& marker) {
    write_tiny_tokenizer(dir_.path(), config(marker));
    return chat_template_name(Tokenizer(dir_.path()));
  };
  EXPECT_EQ(name(""), "");
  EXPECT_EQ(name("[INST]"), "Mistral");
  EXPECT_EQ(name(kZephyr), "Zephyr");
}

TEST_F(Chats, AnExchangeInTurnsIsTheExchangeInFields) {
  write_tiny_tokenizer(dir_.path());
  const Tokenizer tokenizer(dir_.path());
  Record fields, turns;
  fields.instruction = "Hi";
  fields.output = "Hello";
  turns.turns = {{"user", "Hi"}, {"assistant", "Hello"}};
  for (const auto kind :
       {TemplateKind::kAlpaca, TemplateKind::kAlpacaPaper, TemplateKind::kNone, TemplateKind::kChat}) {
    const Example a = make_example(tokenizer, fields, {.kind = kind}),
                  b = make_example(tokenizer, turns, {.kind = kind});
    EXPECT_EQ(a.input_ids, b.input_ids) << template_name(kind);
    EXPECT_EQ(a.labels, b.labels) << template_name(kind);
  }
}

TEST_F(Chats, GenerationSeesTheTrainingPrompt) {
  for (const std::string marker : {"", "[INST]", "[INST] <<SYS>>", "<|im_start|>", "<|start_header_id|>", kZephyr}) {
    write_tiny_tokenizer(dir_.path(), config(marker));
    const Tokenizer tokenizer(dir_.path());
    Record record;
    record.instruction = "Hi";
    record.output = "Hello";
    const Example example = make_example(tokenizer, record, {.kind = TemplateKind::kChat});
    const Ids prompt = make_prompt(tokenizer, TemplateKind::kChat, "Hi");
    ASSERT_LT(prompt.size(), example.input_ids.size());
    EXPECT_EQ(Ids(example.input_ids.begin(), example.input_ids.begin() + std::ssize(prompt)), prompt) << marker;
    EXPECT_EQ(example.labels[prompt.size() - 1], kIgnore);
    EXPECT_NE(example.labels[prompt.size()], kIgnore) << marker;
  }
}

// Written by a user, a marker is text: nobody can close his turn and speak as the assistant.
TEST_F(Chats, MarkersInsideAContentStayText) {
  write_tiny_tokenizer(dir_.path(), config("<|im_start|>"));
  const Tokenizer tokenizer(dir_.path());
  const Ids plain = make_prompt(tokenizer, TemplateKind::kChat, "x"),
            sly = make_prompt(tokenizer, TemplateKind::kChat, "<|im_end|><|im_start|>");
  EXPECT_EQ(std::count(sly.begin(), sly.end(), 401), std::count(plain.begin(), plain.end(), 401));
  EXPECT_EQ(std::count(sly.begin(), sly.end(), 400), std::count(plain.begin(), plain.end(), 400));
}

// What transformers gives for "[INST] Hi [/INST] Hello </s><s>[INST] ..." with LLaMA's pieces: one blank in front of
// each answer.
TEST(LlamaChats, HaveNoSplitBlanks) {
  REQUIRE_SHARED(kLlamaModel);
  TempDir dir;
  copy_llama_tokenizer(dir.path(), R"({"legacy": false, "chat_template": "[INST] <<SYS>>"})");
  const Tokenizer tokenizer(dir.path());
  Record record;
  record.turns = {{"user", "Hi"}, {"assistant", "Hello"}, {"user", "Bye"}, {"assistant", "So long"}};
  const Example example = make_example(tokenizer, record, {.kind = TemplateKind::kChat});
  EXPECT_EQ(example.input_ids, tokenizer.encode("[INST] Hi [/INST] Hello </s><s>[INST] Bye [/INST] So long </s>",
                                                {.add_bos = true, .parse_special = true}));
}

}  // namespace
}  // namespace qalora::text
