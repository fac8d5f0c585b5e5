// tokenizer.json against the ids and texts of the tokenizers library (tests/data/tokenizers/make.py).
#include <algorithm>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/json_file.h"
#include "qalora/text/save_tokenizer.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using nlohmann::json;
using test::contains;
using test::error_of;
using test::TempDir;

fs::path data() { return test::source_dir() / "tests/data/tokenizers"; }
const json& vectors() {
  static const json read = io::read_json_file(data() / "vectors.json");
  return read;
}
std::vector<std::string> texts() { return vectors()["texts"].get<std::vector<std::string>>(); }
json original(const char* name) { return io::read_json_file(data() / name / "tokenizer.json"); }

// How many of the texts a tokenizer encodes otherwise than the library did.
int differing(const Tokenizer& tokenizer, const std::string& name) {
  int count = 0;
  const auto all = texts();
  for (size_t i = 0; i < all.size(); ++i) {
    count += tokenizer.encode(all[i], {.parse_special = true}) != vectors()["ids"][name][i].get<std::vector<int64_t>>();
  }
  return count;
}

class TokenizerJsonGolden : public testing::TestWithParam<const char*> {
 protected:
  const std::string name_ = GetParam();
  const Tokenizer tokenizer_{data() / name_};
};

TEST_P(TokenizerJsonGolden, IdsEqualTheLibrarys) {
  const auto all = texts();
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(tokenizer_.encode(all[i], {.parse_special = true}),
              vectors()["ids"][name_][i].get<std::vector<int64_t>>())
        << all[i];
  }
}

TEST_P(TokenizerJsonGolden, TextsEqualTheLibrarys) {
  const auto all = texts();
  for (size_t i = 0; i < all.size(); ++i) {
    // There the library reads an added token's own letters as GPT-2's for bytes and breaks them; here the token is what
    // it says.
    if (contains(all[i], "n\u00f3rm") || contains(all[i], "no\u0301rm")) continue;
    auto ids = vectors()["ids"][name_][i].get<std::vector<int64_t>>();
    const std::string whole = tokenizer_.decode(ids, /*skip_special=*/false);
    // Behind a special token at the front the prefix is dropped as well, shown or not: then both ways to decode agree.
    const bool behind_special = tokenizer_.kind() == TokenizerKind::kSentencePiece && all[i].starts_with("<s>");
    if (!behind_special) {
      EXPECT_EQ(whole, vectors()["decoded"][name_][i].get<std::string>()) << all[i];
    }
    if (!ids.empty()) ids.pop_back();
    const auto shorter = vectors()["skipped"][name_][i].get<std::string>();
    // Of byte pieces in a row the library shows none when one character among them is broken; SentencePiece itself
    // shows the others.
    if (tokenizer_.kind() == TokenizerKind::kSentencePiece && contains(shorter, "\ufffd")) continue;
    EXPECT_EQ(tokenizer_.decode(ids), shorter) << all[i];
  }
}

TEST_P(TokenizerJsonGolden, StreamsWhatItDecodesAtOnce) {
  const auto all = texts();
  for (size_t i = 0; i < all.size(); ++i) {
    if (!contains(all[i], "\U0001F600") && !contains(all[i], "\u6f22")) continue;  // characters of several ids
    std::vector<int64_t> before;
    std::string text;
    for (const int64_t id : tokenizer_.encode(all[i], {})) {
      text += tokenizer_.decode_next(before, id);
      before.push_back(id);
    }
    EXPECT_EQ(text, tokenizer_.decode(before));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerJsonGolden,
                         testing::Values("llama3", "qwen2", "gpt2", "gpt2_prefix", "llama2", "llama2_first"));

// What a vocabulary cannot say of added tokens.
bool plain(const std::string& text) { return !contains(text, "strip>") && !contains(text, "rm>"); }

class VocabularyRoundTrip : public testing::TestWithParam<const char*> {};

TEST_P(VocabularyRoundTrip, GivesTheSameIdsInMemoryAndThroughFiles) {
  const Tokenizer tokenizer(data() / GetParam());
  const Vocabulary vocabulary = tokenizer.vocabulary();
  EXPECT_EQ(std::ssize(vocabulary.pieces), tokenizer.vocab_size());
  const Tokenizer made(vocabulary, "a.gguf");
  const TempDir dir;
  save_tokenizer(vocabulary, dir.path());
  const Tokenizer saved(dir.path());
  EXPECT_EQ(made.folder(), "a.gguf");
  for (const Tokenizer* other : {&made, &saved}) {
    EXPECT_EQ(other->kind(), tokenizer.kind());
    EXPECT_EQ(other->bos_id(), tokenizer.bos_id());
    EXPECT_EQ(other->eos_id(), tokenizer.eos_id());
    EXPECT_EQ(other->adds_bos(), tokenizer.adds_bos());
    for (const std::string& text : texts()) {
      if (!plain(text)) continue;
      const Tokenizer::EncodeOptions options{.add_bos = true, .parse_special = true};
      EXPECT_EQ(other->encode(text, options), tokenizer.encode(text, options)) << text;
      EXPECT_EQ(other->encode_continuation(text), tokenizer.encode_continuation(text)) << text;
    }
  }
  const Vocabulary again = saved.vocabulary();
  ASSERT_EQ(again.pieces.size(), vocabulary.pieces.size());
  for (size_t id = 0; id < again.pieces.size(); ++id) {
    EXPECT_EQ(again.pieces[id].text, vocabulary.pieces[id].text);
    EXPECT_EQ(again.pieces[id].type, vocabulary.pieces[id].type) << again.pieces[id].text;
    EXPECT_EQ(again.pieces[id].score, vocabulary.pieces[id].score) << again.pieces[id].text;
  }
  EXPECT_EQ(again.merges, vocabulary.merges);
  EXPECT_EQ(again.pre_tokenizer, vocabulary.pre_tokenizer);
  EXPECT_EQ(again.normalization, vocabulary.normalization);
}

INSTANTIATE_TEST_SUITE_P(Kinds, VocabularyRoundTrip, testing::Values("llama3", "qwen2", "gpt2", "llama2"));

TEST(VocabularyOfByteLevel, CarriesAnyNormalizer) {
  const TempDir dir;
  json file = original("llama3");
  file["normalizer"] = {{"type", "NFD"}};
  io::write_json_file(dir / "tokenizer.json", file);
  const Tokenizer tokenizer(dir.path());
  const Tokenizer made(tokenizer.vocabulary(), "a.gguf");
  EXPECT_EQ(made.encode("na\u00efve", {}), tokenizer.encode("na\u00efve", {}));
  EXPECT_NE(made.encode("na\u00efve", {}), Tokenizer(data() / "llama3").encode("na\u00efve", {}));
}

TEST(VocabularyOfSentencePiece, CarriesWhereBlanksGoInFront) {
  const TempDir dir, copy;
  test::write_tiny_tokenizer(dir.path(), R"({"bos_token": "<s>", "eos_token": "</s>", "legacy": false})");
  const Tokenizer tokenizer(dir.path());
  const std::string text = "the</s>the";
  const Tokenizer::EncodeOptions options{.parse_special = true};
  save_tokenizer(tokenizer.vocabulary(), copy.path());
  EXPECT_EQ(Tokenizer(copy.path()).encode(text, options), tokenizer.encode(text, options));
  Vocabulary other = tokenizer.vocabulary();
  other.legacy = true;
  EXPECT_NE(Tokenizer(other, "x").encode(text, options), tokenizer.encode(text, options));
  // A blank only where there is none: no tokenizer.model has that.
  const Vocabulary first = Tokenizer(data() / "llama2_first").vocabulary();
  EXPECT_TRUE(first.prefix_only_without);
  EXPECT_FALSE(first.legacy);
  EXPECT_CONTAINS(error_of<DataError>([&] { Tokenizer tokenizer(first, "x.gguf"); }), "no tokenizer.model can say");
}

TEST(VocabularyOfSentencePiece, IsItsModelsAndItsAddedTokens) {
  const TempDir dir, copy;
  test::write_tiny_tokenizer(
      dir.path(), R"({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": "[INST]",
    "added_tokens_decoder": {"372": {"content": "<pad>", "special": true}, "371": {"content": "<tool>", "special": false}}})");
  const Tokenizer tokenizer(dir.path());
  const Vocabulary vocabulary = tokenizer.vocabulary();
  EXPECT_EQ(vocabulary.kind, TokenizerKind::kSentencePiece);
  EXPECT_EQ(vocabulary.pieces[0].type, PieceType::kUnknown);
  EXPECT_EQ(vocabulary.pieces[1].type, PieceType::kControl);
  EXPECT_EQ(vocabulary.pieces[3].type, PieceType::kByte);
  EXPECT_EQ(vocabulary.pieces[259].text, "\u2581t");
  EXPECT_EQ(vocabulary.pieces[259].score, -1);
  EXPECT_EQ(vocabulary.pieces[371].type, PieceType::kUserDefined);
  EXPECT_EQ(vocabulary.pieces[370].type, PieceType::kUnused);  // nobody's, between the pieces and the added tokens
  EXPECT_EQ(vocabulary.padding, 372);
  save_tokenizer(vocabulary, copy.path());
  const Tokenizer saved(copy.path());
  EXPECT_EQ(saved.chat_template(), "[INST]");
  EXPECT_EQ(saved.vocab_size(), tokenizer.vocab_size());
  for (const std::string text : {"the in a ll", "<tool> the", "a<pad>b</s>", "\u6f22", ""}) {
    EXPECT_EQ(saved.encode(text, {.parse_special = true}), tokenizer.encode(text, {.parse_special = true})) << text;
  }
}

TEST(VocabularyOfSentencePiece, MergesThatNoScoresCanSayAreRefused) {
  const TempDir dir;
  json file = original("llama2");
  auto& merges = file["model"]["merges"];
  const auto made = [&](size_t i) { return merges[i][0].get<std::string>() + merges[i][1].get<std::string>(); };
  size_t second = 1;  // of two ways to make one piece
  while (made(second) != made(second - 1)) ++second;
  merges.erase(second);
  io::write_json_file(dir / "tokenizer.json", file);
  const Tokenizer tokenizer(dir.path());
  EXPECT_THROW(tokenizer.vocabulary(), DataError);
}

TEST(VocabularyOfSentencePiece, APieceThatNoMergeMakesIsRefused) {
  const TempDir dir;
  json file = original("llama2");
  auto& merges = file["model"]["merges"];
  const auto made = [&] { return merges.back()[0].get<std::string>() + merges.back()[1].get<std::string>(); };
  const std::string last = made();
  while (made() == last) merges.erase(merges.size() - 1);
  io::write_json_file(dir / "tokenizer.json", file);
  const Tokenizer tokenizer(dir.path());
  EXPECT_CONTAINS(error_of<DataError>([&] { tokenizer.vocabulary(); }), "has 0 merges of");
}

// Lengths of the halves, best first.
json with_runs_of_blanks(const std::vector<std::pair<int, int>>& order) {
  const auto run = [](int length) {
    std::string text;
    while (length-- > 0) text += "\u2581";
    return text;
  };
  json file = original("llama2");
  for (int length = 2; length <= 4; ++length) file["model"]["vocab"][run(length)] = 560 + length;
  for (const auto& [left, right] : order) file["model"]["merges"].push_back({run(left), run(right)});
  return file;
}

TEST(VocabularyOfSentencePiece, RunsOfBlanksMayBeSortedByTheirHalves) {
  const TempDir dir;
  const std::vector<std::vector<std::pair<int, int>>> orders = {
      {{1, 1}, {1, 2}, {2, 1}, {1, 3}, {2, 2}, {3, 1}},   // by what they make
      {{3, 1}, {2, 2}, {2, 1}, {1, 3}, {1, 2}, {1, 1}}};  // the longer left half first
  for (const auto& order : orders) {
    io::write_json_file(dir / "tokenizer.json", with_runs_of_blanks(order));
    const Tokenizer tokenizer(dir.path());
    const Tokenizer made(tokenizer.vocabulary(), "a.gguf");
    for (size_t count = 0; count < 50; ++count) {
      for (const std::string& text : {std::string(count, ' '), message("a", std::string(count, ' '), "b the")}) {
        EXPECT_EQ(made.encode(text, {}), tokenizer.encode(text, {})) << count;
      }
    }
  }
  // Five blanks are 2 + 3 here, 4 + 1 with one score for all.
  io::write_json_file(dir / "tokenizer.json", with_runs_of_blanks({{1, 1}, {2, 1}, {2, 2}, {1, 2}, {3, 1}, {1, 3}}));
  const Tokenizer other(dir.path());
  EXPECT_CONTAINS(error_of<DataError>([&] { other.vocabulary(); }), "do not stand together");
}

// Each change is one that must be seen in the ids.
TEST(TokenizerJson, NothingOfTheFileIsIdle) {
  const auto changed = [](const char* name, auto&& change) {
    const TempDir dir;
    json file = original(name);
    change(file);
    io::write_json_file(dir / "tokenizer.json", file);
    return differing(Tokenizer(dir.path()), name);
  };
  EXPECT_EQ(changed("qwen2", [](json&) {}), 0);
  EXPECT_GT(changed("qwen2", [](json& file) { file["normalizer"] = nullptr; }), 3);
  EXPECT_GT(changed("qwen2", [](json& file) { file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\S"; }),
            3);
  EXPECT_GT(
      changed("gpt2", [](json& file) { std::reverse(file["model"]["merges"].begin(), file["model"]["merges"].end()); }),
      0);
  EXPECT_GT(changed("gpt2",
                    [](json& file) {
                      for (json& token : file["added_tokens"]) token["lstrip"] = token["rstrip"] = false;
                    }),
            0);
  EXPECT_GT(changed("gpt2_prefix", [](json& file) { file["pre_tokenizer"]["add_prefix_space"] = false; }), 20);
  EXPECT_GT(changed("llama2", [](json& file) { file["normalizer"]["normalizers"].erase(0); }), 20);
}

TEST(TokenizerJson, AWordThatIsAPieceIsNotCutWhereMergesAreIgnored) {
  const TempDir dir;
  json file = original("llama3");
  file["model"]["vocab"]["\u0120zqx"] = 600;  // no merge makes it
  io::write_json_file(dir / "tokenizer.json", file);
  EXPECT_EQ(Tokenizer(dir.path()).encode(" zqx", {}), std::vector<int64_t>{600});
  file["model"]["ignore_merges"] = false;
  io::write_json_file(dir / "tokenizer.json", file);
  EXPECT_GT(Tokenizer(dir.path()).encode(" zqx", {}).size(), 1U);
}

TEST(TokenizerJson, BytesThatAreNoTextKeepTheirPieces) {
  const Tokenizer tokenizer(data() / "qwen2");
  const std::string bytes = "a\xff\xfe b\xc3";
  const std::vector<int64_t> ids = tokenizer.encode(bytes, {});
  EXPECT_EQ(tokenizer.decode(ids), "a\ufffd\ufffd b\ufffd");
  EXPECT_NE(tokenizer.encode("a\ufffd\ufffd b\ufffd", {}), ids);  // must differ: a replacement character in the text
}

TEST(TokenizerJson, BeginAndStopsComeFromTheFilesBesideIt) {
  const TempDir dir;
  io::write_json_file(dir / "tokenizer.json", original("llama3"));
  const Tokenizer alone(dir.path());
  EXPECT_TRUE(alone.adds_bos());  // the template's
  EXPECT_EQ(alone.bos_id(), alone.special_id("<|begin|>"));
  EXPECT_EQ(alone.eos_id(), -1);
  test::write_file(dir / "generation_config.json", R"({"eos_token_id": [521, 522]})");
  EXPECT_EQ(Tokenizer(dir.path()).eos_id(), 521);
  test::write_file(dir / "tokenizer_config.json", R"({"eos_token": "<pad>", "add_bos_token": false})");
  const Tokenizer told(dir.path());
  EXPECT_EQ(told.eos_id(), told.special_id("<pad>"));
  EXPECT_FALSE(told.adds_bos());
  EXPECT_EQ(told.stop_ids(), (std::vector<int64_t>{told.eos_id(), 521}));
  EXPECT_NE(told.fingerprint(), alone.fingerprint());
}

class BadTokenizerJson : public testing::Test {
 protected:
  template <typename F>
  std::string error(F&& change, const char* name = "llama3") {
    json file = original(name);
    change(file);
    io::write_json_file(dir_ / "tokenizer.json", file);
    const std::string what =
        error_of<DataError>([&] { Tokenizer(dir_.path()).encode("some text " + std::string(40, 'a') + " 123", {}); });
    EXPECT_CONTAINS(what, (dir_ / "tokenizer.json").string());
    return what;
  }
  TempDir dir_;
};

TEST_F(BadTokenizerJson, VocabulariesThatContradictThemselves) {
  EXPECT_CONTAINS(error([](json& file) { file["model"]["vocab"]["zqx"] = 5; }), "have the same id 5");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["vocab"]["zqx"] = -1; }), "expected a whole number");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["vocab"]["zqx"] = 1LL << 40; }),
                  "expected a whole number below");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["vocab"]["zqx"] = "7"; }), "expected a whole number");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["vocab"] = json::object(); }), "expected an object with pieces");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["vocab"] = {{"ab", 0}}; }), "single byte");
  EXPECT_CONTAINS(error([](json& file) {
                    file["model"]["merges"].push_back({"zq", "x"});
                  }),
                  "is no piece of the vocabulary");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["merges"].push_back("abc"); }), "expected two pieces");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["merges"].push_back({"a", "b", "c"}); }), "expected two pieces");
  EXPECT_CONTAINS(error([](json& file) { file["added_tokens"][0]["id"] = 1LL << 33; }),
                  "expected a whole number below");
  EXPECT_CONTAINS(error([](json& file) { file["added_tokens"][0]["content"] = ""; }), "without text");
}

TEST_F(BadTokenizerJson, WhatWouldChangeIdsIsRefused) {
  EXPECT_CONTAINS(error([](json& file) { file["model"]["type"] = "WordPiece"; }), "expected BPE");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["dropout"] = 0.1; }), "dropout");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["end_of_word_suffix"] = "</w>"; }), "end_of_word_suffix");
  EXPECT_CONTAINS(error([](json& file) { file["normalizer"] = {{"type", "Lowercase"}}; }), "Lowercase");
  EXPECT_CONTAINS(error([](json& file) { file["pre_tokenizer"] = {{"type", "Whitespace"}}; }), "Whitespace");
  EXPECT_CONTAINS(error([](json& file) { file["pre_tokenizer"] = nullptr; }), "no pre_tokenizer");
  EXPECT_CONTAINS(error([](json& file) {
                    file["post_processor"] = {{"type", "RobertaProcessing"}};
                  }),
                  "RobertaProcessing");
  EXPECT_CONTAINS(error([](json& file) { file["added_tokens"][0]["single_word"] = true; }), "single_word");
  EXPECT_CONTAINS(error([](json& file) { file["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"; }),
                  "MergedWithNext");
  EXPECT_CONTAINS(error([](json& file) { file["model"]["vocab"].erase("<0x41>"); }, "llama2"), "<0x41>");
  EXPECT_CONTAINS(error([](json& file) { file["normalizer"]["normalizers"][1]["content"] = "_"; }, "llama2"),
                  "Replace");
}

// A file of some kilobytes must not ask for a table of millions.
TEST_F(BadTokenizerJson, IdsFarAboveTheNumberOfTokens) {
  const auto with_id = [&](int64_t id) {
    return error([&](json& file) { file["model"]["vocab"]["<0x41>"] = id; }, "llama2");
  };
  EXPECT_CONTAINS(with_id(888'814), "888814");
  EXPECT_CONTAINS(with_id(INT64_MAX), "9223372036854775807");
  EXPECT_CONTAINS(error([](json& file) { file["added_tokens"][0]["id"] = 888'814; }, "llama2"), "888814");
}

TEST_F(BadTokenizerJson, Patterns) {
  const auto pattern = [&](const std::string& regex) {
    return error([&](json& file) { file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", regex}}; });
  };
  EXPECT_CONTAINS(pattern(std::string(10000, 'a')), "at most");
  EXPECT_CONTAINS(pattern("[a"), "a class without an end");
  EXPECT_CONTAINS(pattern("(a"), "not a regular expression");
  EXPECT_CONTAINS(pattern("a*"), "may match nothing");
  EXPECT_CONTAINS(pattern("[a[b]]+"), "a class inside a class");
  EXPECT_CONTAINS(pattern("[a&&b]+"), "a class inside a class");
  EXPECT_CONTAINS(pattern("(?R)a"), "a group of a special kind");
  EXPECT_CONTAINS(pattern("(*LIMIT_MATCH=9)a"), "a group of a special kind");
  EXPECT_CONTAINS(pattern("\\h+"), "an escape");
  EXPECT_CONTAINS(pattern("\\w+"), "an escape");
  EXPECT_CONTAINS(pattern("a{2}+"), "a quantifier behind a quantifier");
  EXPECT_CONTAINS(pattern("\\p{L"), "a property");
  EXPECT_CONTAINS(pattern("(?:[a-z ]+[a-z ]+)+(?:#|%)"), "too much work");
}

TEST_F(BadTokenizerJson, DamagedFiles) {
  const std::string whole = original("llama3").dump();
  for (size_t size = 0; size < whole.size(); size += 501) {
    test::write_file(dir_ / "tokenizer.json", whole.substr(0, size));
    EXPECT_THROW(Tokenizer tokenizer(dir_.path()), DataError) << size;
  }
  test::write_file(dir_ / "tokenizer.json", std::string(2'000'000, '['));
  EXPECT_CONTAINS(error_of<DataError>([&] { Tokenizer tokenizer(dir_.path()); }), "levels deep");
  test::write_file(dir_ / "tokenizer.json", R"({"model": {"vocab": {"a": 1, "a": 2}}})");
  EXPECT_CONTAINS(error_of<DataError>([&] { Tokenizer tokenizer(dir_.path()); }), "stands twice");
}

TEST(BadVocabulary, IsRefusedWithItsName) {
  const auto error = [](auto&& change, const char* name = "qwen2") {
    Vocabulary vocabulary = Tokenizer(data() / name).vocabulary();
    change(vocabulary);
    const std::string what = error_of<DataError>([&] { Tokenizer(vocabulary, "x.gguf"); });
    EXPECT_CONTAINS(what, "x.gguf");
    return what;
  };
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.pieces.clear(); }), "without pieces");
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.pieces[7].text = v.pieces[8].text; }), "stands twice");
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.pieces[7].text = "\xff"; }), "not UTF-8");
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.pieces[7].text = ""; }), "is empty");
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.eos = 1 << 20; }), "outside the vocabulary");
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.eos = -7; }), "outside the vocabulary");
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.pre_tokenizer = ""; }), "pre-tokenizer");
  EXPECT_CONTAINS(error([](Vocabulary& v) { v.merges.push_back("a b c"); }), "expected two pieces");
  EXPECT_CONTAINS(error(
                      [](Vocabulary& v) {
                        v.pieces[300] = {"<0x-1>", 0, PieceType::kByte};
                      },
                      "llama2"),
                  "SentencePiece");
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i)
      bits = bits << 8 | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0);
    for (size_t i = 0; i < 4; ++i) text += at + i > bytes.size() ? '=' : kDigits[bits >> (18 - 6 * i) & 63];
  }
  return text;
}

// LLaMA 3's ranks: what is a piece is one id, and pairs are joined by the rank of what they make.
TEST(Tiktoken, RanksAreIdsAndSpecialTokensFollow) {
  const TempDir dir;
  std::string file;
  int rank = 0;
  for (int byte = 0; byte < 256; ++byte)
    file += message(base64(std::string(1, static_cast<char>(byte))), ' ', rank++, '\n');
  for (const char* token : {"he", "ll", "llo", "hell", " w", "\n\n"}) file += message(base64(token), ' ', rank++, '\n');
  test::write_file(dir / "tokenizer.model", file);
  const Tokenizer tokenizer(dir.path());
  EXPECT_EQ(tokenizer.kind(), TokenizerKind::kByteLevelBpe);
  EXPECT_EQ(tokenizer.vocab_size(), rank + 256);
  // "hello": he (256), ll (257), then llo (258) before hell (259)
  EXPECT_EQ(tokenizer.encode("hello w", {}), (std::vector<int64_t>{256, 258, 260}));
  EXPECT_EQ(tokenizer.encode("hell", {}), std::vector<int64_t>{259});  // whole, though he + ll would be joined first
  EXPECT_EQ(tokenizer.encode("<|eot_id|>", {.parse_special = true}), std::vector<int64_t>{rank + 9});
  EXPECT_EQ(tokenizer.bos_id(), rank);
  EXPECT_EQ(tokenizer.stop_ids(), (std::vector<int64_t>{rank + 1, rank + 8, rank + 9}));
  const Vocabulary vocabulary = tokenizer.vocabulary();
  EXPECT_EQ(vocabulary.pre_tokenizer, "llama-bpe");
  EXPECT_EQ(vocabulary.merges, (std::vector<std::string>{"h e", "l l", "ll o", "he ll", "\u0120 w", "\u010a \u010a"}));
  EXPECT_EQ(Tokenizer(vocabulary, "x").encode("hello w hell\n\n", {}), tokenizer.encode("hello w hell\n\n", {}));
}

// All ways to cut a token are tried, so a long one would take for ever.
TEST(Tiktoken, TokensLongerThanAnyModelsAreRefused) {
  const TempDir dir;
  const auto file = [](size_t length) {
    std::string text;
    for (int byte = 0; byte < 256; ++byte)
      text += message(base64(std::string(1, static_cast<char>(byte))), ' ', byte, '\n');
    return text + base64(std::string(length, 'a')) + " 256\n";
  };
  test::write_file(dir / "tokenizer.model", file(1024));
  EXPECT_EQ(Tokenizer(dir.path()).encode(std::string(1024, 'a'), {}), std::vector<int64_t>{256});
  test::write_file(dir / "tokenizer.model", file(1025));
  EXPECT_CONTAINS(error_of<DataError>([&] { Tokenizer tokenizer(dir.path()); }), "line 257");
}

}  // namespace
}  // namespace qalora::text
