#include "qalora/text/gguf_vocabulary.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/json_file.h"
#include "support/gguf_bytes.h"
#include "tiny_tokenizer.h"

namespace qalora::text {
namespace {

using test::gguf_string;
using test::GgufBytes;
using test::raw;

std::string strings(const std::vector<std::string>& values) {
  std::string bytes = raw(uint32_t{8}) + raw(uint64_t{values.size()});
  for (const auto& value : values) bytes += gguf_string(value);
  return bytes;
}
template <typename T>
std::string numbers(uint32_t type, const std::vector<T>& values) {
  std::string bytes = raw(type) + raw(uint64_t{values.size()});
  for (const T value : values) bytes += raw(value);
  return bytes;
}

struct TinyVocabulary {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "b", "ab"};
  std::vector<float> scores = {0, 0, 0, 0, -1, -2, -3, -0.5};
  std::vector<int32_t> types = {2, 3, 3, 6, 1, 1, 1, 1};
  std::string model = "llama";

  GgufBytes file() const {
    GgufBytes file;
    file.text("tokenizer.ggml.model", model).entry("tokenizer.ggml.tokens", 9, strings(tokens));
    file.entry("tokenizer.ggml.scores", 9, numbers(6, scores)).entry("tokenizer.ggml.token_type", 9, numbers(5, types));
    return file;
  }
};

Vocabulary read(const GgufBytes& file) {
  const std::string bytes = file.bytes();
  return read_gguf_vocabulary(io::parse_gguf(std::as_bytes(std::span(bytes)), "f.gguf"));
}
std::string refusal(const GgufBytes& file) {
  return test::error_of<DataError>([&] { read(file); });
}

TEST(GgufVocabulary, ReadsPiecesAndTheFormatsDefaults) {
  const Vocabulary vocabulary = read(TinyVocabulary().file());
  EXPECT_EQ(vocabulary.kind, TokenizerKind::kSentencePiece);
  ASSERT_EQ(vocabulary.pieces.size(), 8u);
  EXPECT_EQ(vocabulary.pieces[7].text, "ab");
  EXPECT_EQ(vocabulary.pieces[7].score, -0.5f);
  EXPECT_EQ(vocabulary.pieces[3].type, PieceType::kByte);
  EXPECT_EQ(vocabulary.bos, 1);
  EXPECT_EQ(vocabulary.eos, 2);
  EXPECT_EQ(vocabulary.unknown, 0);
  EXPECT_EQ(vocabulary.padding, -1);
  EXPECT_TRUE(vocabulary.add_bos);
  EXPECT_FALSE(vocabulary.add_eos);
  EXPECT_TRUE(vocabulary.add_space_prefix);
}

TEST(GgufVocabulary, IdsBeyondTheTokensArePassedOver) {
  EXPECT_EQ(read(TinyVocabulary().file().u32("tokenizer.ggml.bos_token_id", 8)).bos, -1);
  EXPECT_EQ(read(TinyVocabulary().file().u32("tokenizer.ggml.padding_token_id", UINT32_MAX)).padding, -1);
  EXPECT_EQ(read(TinyVocabulary().file().u32("tokenizer.ggml.bos_token_id", 7)).bos, 7);
}

TEST(GgufVocabulary, HostileListsAreRefused) {
  TinyVocabulary vocabulary;
  vocabulary.tokens[3] = "<0x-1>";
  EXPECT_CONTAINS(refusal(vocabulary.file()), "not of the form");
  vocabulary.tokens[3] = "<0x0A>x";
  EXPECT_CONTAINS(refusal(vocabulary.file()), "not of the form");
  vocabulary = {};
  vocabulary.tokens[6] = "a";
  EXPECT_CONTAINS(refusal(vocabulary.file()), "'a' is there twice");
  vocabulary = {};
  vocabulary.scores.pop_back();
  EXPECT_CONTAINS(refusal(vocabulary.file()), "has 7 entries");
  vocabulary = {};
  vocabulary.types.push_back(1);
  EXPECT_CONTAINS(refusal(vocabulary.file()), "has 9 entries");
  vocabulary = {};
  vocabulary.types[0] = -1;
  EXPECT_CONTAINS(refusal(vocabulary.file()), "type -1");
  vocabulary = {};
  vocabulary.scores[5] = NAN;
  EXPECT_CONTAINS(refusal(vocabulary.file()), "not finite");
  vocabulary = {};
  vocabulary.tokens[5] = "\xff";
  EXPECT_CONTAINS(refusal(vocabulary.file()), "no text");
  vocabulary = {};
  vocabulary.tokens[5] = "";
  EXPECT_CONTAINS(refusal(vocabulary.file()), "empty");
  vocabulary = {};
  vocabulary.model = "bert";
  EXPECT_CONTAINS(refusal(vocabulary.file()), "'bert'");
  EXPECT_CONTAINS(refusal(GgufBytes().text("tokenizer.ggml.model", "llama")), "missing or empty");
  EXPECT_CONTAINS(refusal(GgufBytes()), "no tokenizer");
  vocabulary = {};
  vocabulary.model = "gpt2";
  EXPECT_CONTAINS(refusal(vocabulary.file()), "a rule of cutting text");
  EXPECT_CONTAINS(refusal(vocabulary.file().text("tokenizer.ggml.pre", "llama-bpe")), "merges");
  EXPECT_CONTAINS(
      refusal(
          vocabulary.file().text("tokenizer.ggml.pre", "llama-bpe").entry("tokenizer.ggml.merges", 9, strings({"ab"}))),
      "two pieces");
}

// The tokenizer of a folder, through a GGUF file, gives the same ids; unused tokens fill up the embedding's rows.
TEST(GgufVocabulary, ThereAndBack) {
  test::TempDir dir;
  test::write_tiny_tokenizer(dir.path(), R"({"add_bos_token": true, "bos_token": "<s>", "eos_token": "</s>"})");
  const Tokenizer before(dir.path());
  io::GgufMetadata metadata;
  add_gguf_vocabulary(before.vocabulary(), before.vocab_size() + 5, "test", metadata);
  io::GgufWriter(dir / "m.gguf", metadata, {}).finish();
  const Tokenizer after(dir / "m.gguf");
  EXPECT_EQ(after.vocab_size(), before.vocab_size() + 5);
  EXPECT_EQ(after.bos_id(), before.bos_id());
  EXPECT_EQ(after.eos_id(), before.eos_id());
  EXPECT_EQ(after.adds_bos(), before.adds_bos());
  for (const char* text : {"the hall", "###in\n", "\xE4\xBD\xA0 x", "", " a  a"}) {
    EXPECT_EQ(after.encode(text, {.add_bos = true}), before.encode(text, {.add_bos = true})) << text;
    EXPECT_EQ(after.decode(after.encode(text, {})), before.decode(before.encode(text, {}))) << text;
  }
  EXPECT_TRUE(Tokenizer::exists(dir / "m.gguf"));
  // And as a folder's files again.
  fs::create_directories(dir / "copy");
  save_gguf_tokenizer(dir / "m.gguf", dir / "copy");
  EXPECT_EQ(Tokenizer(dir / "copy").encode("the hall", {}), before.encode("the hall", {}));
  // Fewer rows than tokens cannot be.
  io::GgufMetadata other;
  EXPECT_CONTAINS(test::error_of<DataError>([&] { add_gguf_vocabulary(before.vocabulary(), 10, "test", other); }),
                  "only 10 rows");
}

// Byte-level BPE through a GGUF file, against itself.
TEST(GgufVocabulary, ByteLevelThereAndBack) {
  const test::TempDir dir;
  const fs::path data = test::source_dir() / "tests/data/tokenizers";
  const nlohmann::json texts = io::read_json_file(data / "vectors.json")["texts"];
  for (const char* name : {"llama3", "qwen2", "gpt2"}) {
    const Tokenizer before(data / name);
    const Vocabulary vocabulary = before.vocabulary();
    io::GgufMetadata metadata;
    add_gguf_vocabulary(vocabulary, before.vocab_size(), name, metadata);
    io::GgufWriter(dir / "m.gguf", metadata, {}).finish();
    const Tokenizer after(dir / "m.gguf");
    for (const auto& entry : texts) {
      const auto text = entry.get<std::string>();
      if (test::contains(text, "strip>") || test::contains(text, "rm>"))
        continue;  // what a vocabulary cannot say of added tokens
      EXPECT_EQ(after.encode(text, {.add_bos = true, .parse_special = true}),
                before.encode(text, {.add_bos = true, .parse_special = true}))
          << name << ": " << text;
    }
    // The format has no key for either.
    const auto refusal = [&](auto&& change) {
      Vocabulary other = vocabulary;
      change(other);
      return test::error_of<DataError>([&] { add_gguf_vocabulary(other, before.vocab_size(), name, metadata); });
    };
    EXPECT_CONTAINS(refusal([](Vocabulary& v) { v.ignore_merges = !v.ignore_merges; }), "ignore_merges");
    EXPECT_CONTAINS(refusal([](Vocabulary& v) { v.normalization = v.normalization.empty() ? "NFC" : ""; }),
                    "normalizer");
  }
}

TEST(GgufVocabulary, FilesBesideItCountAndATokenizerThatIsNotReadIsLeftOut) {
  test::TempDir dir;
  test::write_file(dir / "model.gguf", TinyVocabulary().file().bytes());
  fs::create_directories(dir / "copy");
  for (const char* own : {"tokenizer.model", "tokenizer.json"}) {
    test::write_file(dir / own, "what counts");
    save_gguf_tokenizer(dir.path(), dir / "copy");
    EXPECT_TRUE(fs::is_empty(dir / "copy")) << own;
    fs::remove(dir / own);
  }
  TinyVocabulary vocabulary;
  vocabulary.model = "gpt2";
  test::write_file(dir / "model.gguf", vocabulary.file().text("tokenizer.ggml.pre", "unheard-of").bytes());
  save_gguf_tokenizer(dir.path(), dir / "copy");
  EXPECT_TRUE(fs::is_empty(dir / "copy"));
  vocabulary = {};  // must differ: one that is read
  for (int byte = 0; byte < 256; ++byte) {
    if (byte == 10) continue;
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    vocabulary.tokens.push_back(name);
    vocabulary.scores.push_back(0);
    vocabulary.types.push_back(6);
  }
  test::write_file(dir / "model.gguf", vocabulary.file().bytes());
  save_gguf_tokenizer(dir.path(), dir / "copy");
  EXPECT_TRUE(fs::exists(dir / "copy" / "tokenizer.model"));
}

TEST(GgufVocabulary, PlaceholdersAreAsManyAsTheRows) {
  for (const int64_t rows : {1, 2, 100, 300}) {
    const Vocabulary vocabulary = placeholder_vocabulary(rows);
    EXPECT_EQ(static_cast<int64_t>(vocabulary.pieces.size()), rows);
    io::GgufMetadata metadata;
    add_gguf_vocabulary(vocabulary, rows, "test", metadata);
  }
}

}  // namespace
}  // namespace qalora::text
