#include "qalora/text/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "qalora/core/error.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using namespace qalora::test;
using namespace std::string_literals;  // "a\0b"s keeps its NUL
using Ids = std::vector<int64_t>;
using nlohmann::json;

Ids joined(Ids first, const Ids& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// Everything that a stream prints for these ids, one by one.
std::string streamed(const Tokenizer& tokenizer, const Ids& ids) {
  std::string text;
  Ids before;
  for (const int64_t id : ids) {
    text += tokenizer.decode_next(before, id);
    before.push_back(id);
  }
  return text;
}

class TinyTokenizer : public testing::Test {
 protected:
  Tokenizer make(const std::string& config = "") {
    write_tiny_tokenizer(dir_.path(), config);
    return Tokenizer(dir_.path());
  }
  TempDir dir_;
};

class LlamaTokenizer : public testing::Test {
 protected:
  void SetUp() override { REQUIRE_SHARED(kLlamaModel); }
  Tokenizer make(const std::string& config = "") {
    copy_llama_tokenizer(dir_.path(), config);
    return Tokenizer(dir_.path());
  }
  TempDir dir_;
};

TEST_F(LlamaTokenizer, GivesLlamaCppsIds) {
  const Tokenizer tokenizer = make();
  const fs::path folder = shared_dir() / "data/tokenizer";
  const std::string input = read_file(folder / "llama_spm_vectors.inp"),
                    output = read_file(folder / "llama_spm_vectors.out");
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::istringstream lines(output);
  std::string line;
  int vectors = 0;
  for (size_t at = 0; at < input.size();) {
    const size_t end = std::min(input.find(separator, at), input.size());
    ASSERT_TRUE(std::getline(lines, line));
    std::istringstream numbers(line);
    Ids expected;
    for (int64_t id; numbers >> id;) expected.push_back(id);
    const std::string text = input.substr(at, end - at);
    EXPECT_EQ(tokenizer.encode(text, {}), expected) << "'" << text << "'";
    EXPECT_EQ(tokenizer.decode(expected), text);
    EXPECT_EQ(streamed(tokenizer, expected), text);
    ++vectors;
    at = end + separator.size();
  }
  EXPECT_GE(vectors, 40);
}

TEST_F(LlamaTokenizer, KnowsTheLettersInContext) {
  const Tokenizer tokenizer = make();
  EXPECT_EQ(tokenizer.encode("Answer: A", {}), (Ids{673, 29901, 319}));
  EXPECT_EQ(tokenizer.encode("Answer:A", {}), (Ids{673, 29901, 29909}));
  EXPECT_EQ(tokenizer.encode("Answer: ", {}), (Ids{673, 29901, 29871}));
  EXPECT_EQ(tokenizer.encode(" A", {}), (Ids{29871, 319}));
  EXPECT_EQ(tokenizer.encode("Answer:\nA", {}), (Ids{673, 29901, 13, 29909}));
  EXPECT_EQ(tokenizer.vocab_size(), 32000);
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.stop_ids(), Ids{2});
}

TEST_F(LlamaTokenizer, LegacyPutsAPrefixBehindASpecialToken) {
  const Tokenizer legacy = make();
  const auto options = Tokenizer::EncodeOptions{.add_bos = true, .parse_special = true};
  EXPECT_TRUE(legacy.legacy());
  EXPECT_EQ(legacy.encode("Hello <s>.", options), (Ids{1, 15043, 29871, 1, 869}));
  const Tokenizer modern = make(R"({"legacy": false})");
  EXPECT_EQ(modern.encode("Hello <s>.", options), (Ids{1, 15043, 29871, 1, 29889}));
  // Without parse_special the same letters are ordinary text.
  const Ids plain = modern.encode("Hello <s>.", {.add_bos = true});
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 1), 1);
  EXPECT_EQ(modern.decode(plain), "Hello <s>.");
}

TEST_F(LlamaTokenizer, ContinuationIsWhatStandsBehindOtherText) {
  const Tokenizer tokenizer = make();
  EXPECT_EQ(tokenizer.encode_continuation("A"), Ids{29909});
  EXPECT_EQ(tokenizer.encode_continuation(" A"), Ids{319});
  EXPECT_NE(tokenizer.encode_continuation("A"), tokenizer.encode("A", {}));
  for (const std::string text :
       {" Hello", "  two blanks", "\nline", "\n\n  x", "\U0001F999", "\u00e9t\u00e9", "\t", "a b", " "}) {
    EXPECT_EQ(joined(tokenizer.encode("x:\n", {}), tokenizer.encode_continuation(text)),
              tokenizer.encode("x:\n" + text, {}))
        << text;
  }
}

TEST_F(LlamaTokenizer, SpeaksAsLmEvalDoes) {
  REQUIRE_SHARED("goldens/mmlu/scores.json");
  const fs::path folder = shared_dir() / "goldens/mmlu";
  const Tokenizer tokenizer(folder / "model");
  const json prompts = json::parse(read_file(folder / "prompts.json")),
             scores = json::parse(read_file(folder / "scores.json"));
  const json& list = prompts.is_array() ? prompts : prompts["prompts"];
  int compared = 0;
  for (const json& row : scores["rows"]) {
    const auto same = [&](const json& p) {
      return p["protocol"] == "lm_eval" && p["subject"] == row["subject"] && p["index"] == row["index"] &&
             p["shots"] == row["shots"];
    };
    const auto prompt = std::find_if(list.begin(), list.end(), same);
    ASSERT_NE(prompt, list.end());
    const std::string context = (*prompt)["prompt"];
    const Ids ids = tokenizer.encode(context, {.add_bos = tokenizer.adds_bos()});
    EXPECT_EQ(std::ssize(ids), row["context_tokens"].get<int64_t>());
    EXPECT_EQ(Ids(ids.begin(), ids.begin() + 8), row["first_context_ids"].get<Ids>());
    EXPECT_EQ(Ids(ids.end() - 8, ids.end()), row["last_context_ids"].get<Ids>());
    for (int choice = 0; choice < 4; ++choice) {
      const std::string letter = std::string(" ") + static_cast<char>('A' + choice);
      const Ids expected = row["continuation_ids"][choice].get<Ids>();
      EXPECT_EQ(tokenizer.encode(context + letter, {.add_bos = true}), joined(ids, expected));
      EXPECT_EQ(tokenizer.encode_continuation(letter), expected);
    }
    ++compared;
  }
  EXPECT_EQ(compared, 16);
}

TEST_F(TinyTokenizer, EmptyTextIsBosAlone) {
  const Tokenizer tokenizer = make();
  EXPECT_EQ(tokenizer.encode("", {.add_bos = true}), Ids{1});
  EXPECT_EQ(tokenizer.encode("", {}), Ids{});
  EXPECT_EQ(tokenizer.encode_continuation(""), Ids{});
  EXPECT_EQ(tokenizer.decode({}), "");
  EXPECT_EQ(tokenizer.decode({1, 2}), "");
}

TEST_F(TinyTokenizer, NeverTwoBos) {
  const Tokenizer tokenizer = make();
  const Ids parsed = tokenizer.encode("<s>the", {.add_bos = true, .parse_special = true});
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), 1), 1);
  EXPECT_EQ(parsed, tokenizer.encode("the", {.add_bos = true}));
  // Not at the front: that one is the text's own.
  const Ids inside = tokenizer.encode("the<s>", {.add_bos = true, .parse_special = true});
  EXPECT_EQ(std::count(inside.begin(), inside.end(), 1), 2);
  EXPECT_EQ(tokenizer.encode("the", {.add_bos = true, .add_eos = true}).back(), 2);
}

TEST_F(TinyTokenizer, RoundTripsAnyText) {
  const Tokenizer tokenizer = make();
  const std::vector<std::string> texts = {
      "the", " the", "  the", "a\nb", "\n", "tab\tx", "\u00fc\u4e2d\U0001F680", "x  y   z ", "</s> <s>", "nul\0x"s};
  for (const std::string& text : texts) {
    const Ids ids = tokenizer.encode(text, {.add_bos = true, .add_eos = true});
    EXPECT_EQ(tokenizer.decode(ids), text);
    EXPECT_EQ(streamed(tokenizer, ids), text);
    EXPECT_EQ(joined(tokenizer.encode("ab", {}), tokenizer.encode_continuation(text)),
              tokenizer.encode("ab" + text, {}))
        << "'" << text << "'";
  }
}

TEST_F(TinyTokenizer, StreamHoldsBackHalfACharacter) {
  const Tokenizer tokenizer = make();
  const Ids rocket = tokenizer.encode_continuation("\U0001F680!");  // four byte pieces and one character
  ASSERT_EQ(rocket.size(), 5u);
  Ids before;
  std::vector<std::string> parts;
  for (const int64_t id : rocket) {
    parts.push_back(tokenizer.decode_next(before, id));
    before.push_back(id);
  }
  EXPECT_EQ(parts, (std::vector<std::string>{"", "", "", "\U0001F680", "!"}));
  // A character that never ends comes out as replacement marks, and valid UTF-8.
  EXPECT_EQ(tokenizer.decode({rocket[0], rocket[1], rocket[4]}), "\uFFFD\uFFFD!");
  EXPECT_EQ(streamed(tokenizer, {rocket[0], rocket[1], rocket[4]}), "\uFFFD\uFFFD!");
}

TEST_F(TinyTokenizer, OnlyTheFirstPrefixIsDropped) {
  const Tokenizer tokenizer = make();
  const Ids the = tokenizer.encode("the", {});
  ASSERT_EQ(the.size(), 1u);
  EXPECT_EQ(tokenizer.decode({the[0], the[0]}), "the the");
  EXPECT_EQ(tokenizer.decode_next({}, the[0]), "the");
  EXPECT_EQ(tokenizer.decode_next({1}, the[0]), "the");
  EXPECT_EQ(tokenizer.decode_next({the[0]}, the[0]), " the");
  EXPECT_EQ(tokenizer.decode({1, the[0], 2}, /*skip_special=*/false), "<s>the</s>");
}

TEST_F(TinyTokenizer, IdsThatNobodyKnowsAreVisibleNotFatal) {
  const Tokenizer tokenizer = make();
  EXPECT_EQ(tokenizer.decode({-1, 1 << 30}), "\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer.piece(1 << 30), "");
  EXPECT_EQ(tokenizer.piece(2), "</s>");
}

TEST_F(TinyTokenizer, AddedTokensLieBehindThePieces) {
  write_file(dir_ / "added_tokens.json", R"({"<|im_start|>": 400, "<|im_end|>": 401})");
  write_file(dir_ / "generation_config.json", R"({"eos_token_id": [2, 401]})");
  const Tokenizer tokenizer = make(R"({"legacy": false, "added_tokens_decoder": {
      "400": {"content": "<|im_start|>", "special": true}, "401": {"content": "<|im_end|>", "special": true},
      "402": {"content": "<sum>", "special": false, "lstrip": true, "rstrip": true}}})");
  EXPECT_EQ(tokenizer.vocab_size(), 403);
  EXPECT_EQ(tokenizer.special_id("<|im_end|>"), 401);
  EXPECT_EQ(tokenizer.special_id("<|im_enx|>"), -1);
  EXPECT_EQ(tokenizer.stop_ids(), (Ids{2, 401}));
  EXPECT_EQ(tokenizer.eos_id(), 2);
  const Ids the = tokenizer.encode_continuation("the");
  EXPECT_EQ(tokenizer.encode("<|im_start|>the<|im_end|>", {.parse_special = true}), joined(joined({400}, the), {401}));
  const Ids unparsed = tokenizer.encode("<|im_end|>", {});
  EXPECT_EQ(std::count(unparsed.begin(), unparsed.end(), 401), 0);
  // A token that is not special is always taken, with the blanks beside it as it says.
  EXPECT_EQ(tokenizer.encode_continuation("the  <sum> \nthe"), joined(joined(the, {402}), the));
  EXPECT_EQ(tokenizer.decode({400, 402, 401}), "<sum>");
  EXPECT_EQ(tokenizer.piece(402), "<sum>");
  EXPECT_EQ(tokenizer.decode({390}), "\uFFFD");  // a gap between pieces and added tokens
}

TEST_F(TinyTokenizer, ReadsTheConfigsRules) {
  const Tokenizer defaults = make();
  EXPECT_TRUE(defaults.adds_bos());
  EXPECT_FALSE(defaults.adds_eos());
  EXPECT_EQ(defaults.chat_template(), "");
  const Tokenizer set = make(R"({"add_bos_token": false, "add_eos_token": true, "legacy": null, "bos_token": null,
      "eos_token": {"content": "the end", "lstrip": false}, "added_tokens_decoder": {"500": {"content": "the end", "special": true}},
      "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "[INST]"}]})");
  EXPECT_FALSE(set.adds_bos());
  EXPECT_TRUE(set.adds_eos());
  EXPECT_TRUE(set.legacy());
  EXPECT_EQ(set.bos_id(), 1);
  EXPECT_EQ(set.eos_id(), 500);
  EXPECT_EQ(set.chat_template(), "[INST]");
}

TEST_F(TinyTokenizer, FingerprintFollowsTheRules) {
  const std::string plain = make().fingerprint();
  EXPECT_EQ(plain.size(), 64u);
  EXPECT_EQ(make().fingerprint(), plain);
  EXPECT_NE(make(R"({"legacy": false})").fingerprint(), plain);
  EXPECT_NE(make(R"({"add_bos_token": false})").fingerprint(), plain);
  EXPECT_NE(make(R"({"chat_template": "[INST]"})").fingerprint(), plain);
  EXPECT_NE(make(R"({"chat_template": "[INST]"})").fingerprint(),
            make(R"({"chat_template": "<|im_start|>"})").fingerprint());
  write_file(dir_ / "generation_config.json", R"({"eos_token_id": [2, 1]})");
  EXPECT_NE(make("{}").fingerprint(), plain);
}

TEST_F(TinyTokenizer, AModelWithoutDummyPrefix) {
  const Tokenizer with = make();
  const Ids prefixed = with.encode("the", {});
  write_file(dir_ / "tokenizer.model", tiny_model(/*dummy_prefix=*/false));
  const Tokenizer without(dir_.path());
  EXPECT_EQ(without.encode("the", {}), with.encode_continuation("the"));
  EXPECT_NE(without.encode("the", {}), prefixed);
  EXPECT_EQ(without.decode(prefixed), " the");
}

class BadTokenizer : public testing::Test {
 protected:
  std::string error(const std::string& name, const std::string& content) {
    write_tiny_tokenizer(dir_.path());
    write_file(dir_ / name, content);
    const std::string what = error_of<DataError>([&] { Tokenizer tokenizer(dir_.path()); });
    EXPECT_CONTAINS(what, (dir_ / name).string());
    return what;
  }
  TempDir dir_;
};

TEST_F(BadTokenizer, SaysWhatTheModelFileIs) {
  EXPECT_CONTAINS(error("tokenizer.model", ""), "empty");
  EXPECT_CONTAINS(error("tokenizer.model", "IQ== 0\nIg== 2\n"), "line 2 of a tiktoken vocabulary");
  EXPECT_CONTAINS(error("tokenizer.model", "{\"model\": {}}"), "JSON");
  EXPECT_CONTAINS(error("tokenizer.model", "version https://git-lfs.github.com/spec/v1\n"), "git lfs pull");
  EXPECT_CONTAINS(error("tokenizer.model", std::string(64, '\xff')), "damaged");
  EXPECT_CONTAINS(error("tokenizer.model", bytes_field(9, "x")), "no pieces");
}

// The library would end the process over these.
TEST_F(BadTokenizer, PiecesAreNotEmpty) {
  EXPECT_CONTAINS(error("tokenizer.model", tiny_model() + piece_field(std::string("\0\0\xc0", 3), -1, kNormal)),
                  "has a zero byte in it");
  EXPECT_CONTAINS(error("tokenizer.model", tiny_model() + piece_field("", -1, kNormal)), "is empty");
  EXPECT_CONTAINS(error("tokenizer.model", tiny_model() + bytes_field(1, "\xff")), "is damaged");
}

TEST_F(BadTokenizer, TruncatedAnywhere) {
  const std::string model = tiny_model();
  for (size_t size = 1; size < model.size(); size += 97) {
    write_file(dir_ / "tokenizer.model", model.substr(0, size));
    EXPECT_THROW(Tokenizer tokenizer(dir_.path()), DataError) << size << " of " << model.size() << " bytes";
  }
}

TEST_F(BadTokenizer, ChangedBytesNeverCrash) {
  const std::string model = tiny_model();
  uint32_t state = 1;
  const auto next = [&] { return state = state * 1664525 + 1013904223, state >> 8; };
  for (int round = 0; round < 300; ++round) {
    std::string damaged = model;
    for (int change = 0; change < 3; ++change) damaged[next() % damaged.size()] = static_cast<char>(next());
    write_file(dir_ / "tokenizer.model", damaged);
    try {
      const Tokenizer tokenizer(dir_.path());
      tokenizer.decode(tokenizer.encode("the in a ll \u00fc", {}));
    } catch (const DataError&) {
      continue;  // refused, which is as good
    }
  }
}

TEST_F(BadTokenizer, NamesTheKeyOfAWrongRule) {
  EXPECT_CONTAINS(error("tokenizer_config.json", "{"), "JSON");
  EXPECT_CONTAINS(error("tokenizer_config.json", "[]"), "array");
  EXPECT_CONTAINS(error("tokenizer_config.json", R"({"legacy": "no"})"), "'legacy'");
  EXPECT_CONTAINS(error("tokenizer_config.json", R"({"bos_token": 7})"), "'bos_token'");
  EXPECT_CONTAINS(error("tokenizer_config.json", R"({"added_tokens_decoder": {"99999999999": {"content": "x"}}})"),
                  "99999999999");
  fs::remove(dir_ / "tokenizer_config.json");
  EXPECT_CONTAINS(error("added_tokens.json", R"({"x": -4})"), "-4");
  fs::remove(dir_ / "added_tokens.json");
  EXPECT_CONTAINS(error("generation_config.json", R"({"eos_token_id": ["2"]})"), "'eos_token_id'");
}

TEST_F(BadTokenizer, AnEosThatDoesNotExist) {
  write_tiny_tokenizer(dir_.path(), R"({"eos_token": "<|fin|>"})");
  EXPECT_CONTAINS(error_of<DataError>([&] { Tokenizer tokenizer(dir_.path()); }), "<|fin|>");
}

TEST_F(BadTokenizer, AFolderWithoutAny) {
  EXPECT_FALSE(Tokenizer::exists(dir_.path()));
  const std::string what = error_of<DataError>([&] { Tokenizer tokenizer(dir_.path()); });
  EXPECT_CONTAINS(what, "no tokenizer.model and no tokenizer.json");
  write_file(dir_ / "tokenizer.json", "{}");
  EXPECT_TRUE(Tokenizer::exists(dir_.path()));
  EXPECT_CONTAINS(error_of<DataError>([&] { Tokenizer tokenizer(dir_.path()); }), "'model' is missing");
  write_tiny_tokenizer(dir_.path());  // SentencePiece comes first
  EXPECT_EQ(Tokenizer(dir_.path()).kind(), TokenizerKind::kSentencePiece);
}

TEST_F(TinyTokenizer, VocabularySaysThatThereIsNoBlankInFrontWhereItAddsNone) {
  const auto adds = [&](const char* config) { return make(config).vocabulary().add_space_prefix; };
  EXPECT_TRUE(adds(R"({"legacy": true})"));
  EXPECT_TRUE(adds(R"({"legacy": false})"));
  EXPECT_TRUE(adds(R"({"legacy": true, "add_prefix_space": false})"));  // which then counts for nothing
  EXPECT_FALSE(adds(R"({"legacy": false, "add_prefix_space": false})"));
}

}  // namespace
}  // namespace qalora::text
