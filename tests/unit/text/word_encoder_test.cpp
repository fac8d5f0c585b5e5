// Encoding word by word against the library on whole texts: src/text/word_encoder.cpp, through the tokenizer.
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include "qalora/text/tokenizer.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using namespace qalora::test;
using namespace std::string_literals;
using Ids = std::vector<int64_t>;

Ids whole(const fs::path& folder, const std::string& text) {
  sentencepiece::SentencePieceProcessor processor;
  EXPECT_TRUE(processor.Load((folder / "tokenizer.model").string()).ok());
  const std::vector<int> ids = processor.EncodeAsIds(text);
  return Ids(ids.begin(), ids.end());
}

// Words, runs of blanks, the blank mark itself, line breaks, broken UTF-8 and NUL in any order.
std::vector<std::string> mixed_texts() {
  const std::vector<std::string> parts = {" ",  "  ",   "the",  "a",      "\n", "\u2581", "\u2581\u2581", "in", "ll",
                                          "\t", "\xff", "\xe4", "\u4e2d", "##", "."};
  std::vector<std::string> texts = {"",          " ",       "   ", "\u2581", "\u2581 ", " \u2581", "the \u2581 the",
                                    "a\u2581 a", "nul\0 x"s};
  uint32_t state = 3;
  const auto next = [&] { return state = state * 1664525 + 1013904223, state >> 8; };
  for (int text = 0; text < 400; ++text) {
    texts.emplace_back();
    for (uint32_t part = 0; part < 1 + next() % 12; ++part) texts.back() += parts[next() % parts.size()];
  }
  return texts;
}

void expect_the_librarys_ids(const fs::path& folder, const std::vector<std::string>& texts) {
  const Tokenizer tokenizer(folder);
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load((folder / "tokenizer.model").string()).ok());
  for (const std::string& text : texts) {
    const std::vector<int> expected = processor.EncodeAsIds(text);
    EXPECT_EQ(tokenizer.encode(text, {}), Ids(expected.begin(), expected.end())) << "'" << text << "'";
  }
}

TEST(WordEncoder, GivesTheLibrarysIds) {
  TempDir dir;
  write_tiny_tokenizer(dir.path());
  expect_the_librarys_ids(dir.path(), mixed_texts());
}

TEST(WordEncoder, GivesTheLibrarysIdsForLlama) {
  REQUIRE_SHARED(kLlamaModel);
  REQUIRE_SHARED("data/text/wiki_demo.txt");
  TempDir dir;
  copy_llama_tokenizer(dir.path());
  std::vector<std::string> texts = mixed_texts();
  const std::string wiki = read_file(shared_dir() / "data/text/wiki_demo.txt");
  for (size_t at = 0; at < std::min<size_t>(wiki.size(), 400'000); at += 3'001)
    texts.push_back(wiki.substr(at, 3'000));  // cuts characters too
  expect_the_librarys_ids(dir.path(), texts);
}

// "a the" as one piece: here cutting at blanks would give other ids, so the text must be encoded whole.
TEST(WordEncoder, AVocabularyThatJoinsWordsIsNotCut) {
  TempDir dir;
  write_file(dir / "tokenizer.model", piece_field("a\u2581", -0.5f, kNormal) + tiny_model());
  const Tokenizer joining(dir.path());
  EXPECT_EQ(joining.encode("a a", {}), whole(dir.path(), "a a"));
  EXPECT_EQ(joining.piece(joining.encode("xa a", {})[2]), "a\u2581");
  expect_the_librarys_ids(dir.path(), mixed_texts());
}

TEST(WordEncoder, AModelThatCollapsesBlanks) {
  TempDir dir;
  const std::string collapse = bytes_field(3, number_field(4, 1));
  write_file(dir / "tokenizer.model", tiny_model() + collapse);
  const Tokenizer tokenizer(dir.path());
  EXPECT_EQ(tokenizer.encode("the  the", {}), tokenizer.encode("the the", {}));
  expect_the_librarys_ids(dir.path(), mixed_texts());
}

}  // namespace
}  // namespace qalora::text
