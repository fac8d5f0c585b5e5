#include "qalora/text/save_tokenizer.h"

#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "pre_tokenizer.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/io/json_file.h"
#include "vocabulary_files.h"

namespace qalora::text {
namespace {

using nlohmann::json;

// Protocol buffers' wire format, as much as a SentencePiece model takes.
class MessageWriter {
 public:
  MessageWriter& number(int field, uint64_t value) {
    varint(static_cast<uint64_t>(field) << 3);
    varint(value);
    return *this;
  }
  MessageWriter& real(int field, float value) {
    varint(static_cast<uint64_t>(field) << 3 | 5);
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) bytes_ += static_cast<char>(bits >> shift & 0xff);
    return *this;
  }
  MessageWriter& text(int field, std::string_view value) {
    varint(static_cast<uint64_t>(field) << 3 | 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }
  std::string bytes_;
};

bool holds(const Vocabulary& vocabulary, int64_t id) { return id >= 0 && id < std::ssize(vocabulary.pieces); }
bool is_added(const Piece& piece) { return piece.type == PieceType::kControl || piece.type == PieceType::kUserDefined; }

json added_token(const Piece& piece) {
  return {{"content", piece.text}, {"lstrip", false},     {"rstrip", false},
          {"single_word", false},  {"normalized", false}, {"special", piece.type == PieceType::kControl}};
}

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

json pre_tokenizer_of(const Vocabulary& vocabulary) {
  json steps = json::array();
  for (const SplitStep& step : named_steps(vocabulary.pre_tokenizer)) {
    steps.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", step.pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  steps.push_back(byte_level(false));
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

json post_processor_of(const Vocabulary& vocabulary) {
  json single = json::array(), tokens = json::object();
  const auto special = [&](int64_t id) {
    const std::string& text = vocabulary.pieces[id].text;
    single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
    tokens[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
  };
  if (vocabulary.add_bos && holds(vocabulary, vocabulary.bos)) special(vocabulary.bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (vocabulary.add_eos && holds(vocabulary, vocabulary.eos)) special(vocabulary.eos);
  if (tokens.empty()) return byte_level(false);
  json pair = single;
  for (json entry : single) {
    json& part = entry.begin().value();
    part["type_id"] = 1;
    if (entry.contains("Sequence")) part["id"] = "B";
    pair.push_back(entry);
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}};
}

}  // namespace

void check_vocabulary(const Vocabulary& vocabulary, const std::string& name) {
  QALORA_REQUIRE(!vocabulary.pieces.empty(), DataError, name, ": a vocabulary without pieces");
  std::set<std::string_view> texts;
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const std::string& text = vocabulary.pieces[id].text;
    QALORA_REQUIRE(!text.empty() && valid_utf8(text), DataError, name, ": piece ", id, " of the vocabulary is ",
                   text.empty() ? "empty" : "not UTF-8 text");
    QALORA_REQUIRE(texts.insert(text).second, DataError, name, ": the piece '", text,
                   "' stands twice in the vocabulary, the second time as ", id);
  }
  const std::pair<const char*, int64_t> ids[] = {{"bos", vocabulary.bos},
                                                 {"eos", vocabulary.eos},
                                                 {"unknown", vocabulary.unknown},
                                                 {"padding", vocabulary.padding}};
  for (const auto& [what, id] : ids) {
    QALORA_REQUIRE(id == -1 || holds(vocabulary, id), DataError, name, ": the ", what, " token has the id ", id,
                   ", outside the vocabulary of ", vocabulary.pieces.size());
  }
  QALORA_REQUIRE(!vocabulary.prefix_only_without, DataError, name,
                 ": a blank goes in front of a text only where it begins with none, which no tokenizer.model can say");
  if (vocabulary.kind == TokenizerKind::kSentencePiece) return;
  QALORA_REQUIRE(!named_steps(vocabulary.pre_tokenizer).empty(), DataError, name, ": the pre-tokenizer '",
                 vocabulary.pre_tokenizer,
                 "' is not known (known: llama-bpe, qwen2, gpt-2); texts cannot be cut as the model learnt it");
}

std::string sentencepiece_file_of(const Vocabulary& vocabulary) {
  MessageWriter file;
  int64_t bytes = 0;
  for (const Piece& piece : vocabulary.pieces) {
    MessageWriter entry;
    entry.text(1, piece.text).real(2, piece.score).number(3, static_cast<uint64_t>(piece.type));
    file.text(1, entry.bytes());
    bytes += piece.type == PieceType::kByte;
  }
  MessageWriter trainer, normalizer;
  trainer.number(3, 2).number(4, vocabulary.pieces.size()).number(35, bytes > 0);  // BPE, byte fallback
  const std::pair<int, int64_t> named[] = {
      {45, vocabulary.unknown}, {46, vocabulary.bos}, {47, vocabulary.eos}, {48, vocabulary.padding}};
  for (const auto& [field, id] : named) {
    if (holds(vocabulary, id)) trainer.text(field, vocabulary.pieces[id].text);
  }
  normalizer.text(1, "identity").number(3, vocabulary.add_space_prefix).number(4, 0).number(5, 1);
  return file.text(2, trainer.bytes()).text(3, normalizer.bytes()).bytes();
}

json tokenizer_json_of(const Vocabulary& vocabulary) {
  json added = json::array(), pieces = json::object(), merges = json::array();
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const Piece& piece = vocabulary.pieces[id];
    if (is_added(piece)) {
      added.push_back(added_token(piece));
      added.back()["id"] = id;
    } else if (piece.type != PieceType::kUnused) {
      pieces[piece.text] = id;
    }
  }
  for (const std::string& merge : vocabulary.merges) merges.push_back(merge);
  const bool unknown =
      holds(vocabulary, vocabulary.unknown) && pieces.contains(vocabulary.pieces[vocabulary.unknown].text);
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", vocabulary.normalization.empty() ? json(nullptr) : json{{"type", vocabulary.normalization}}},
          {"pre_tokenizer", pre_tokenizer_of(vocabulary)},
          {"post_processor", post_processor_of(vocabulary)},
          {"decoder", byte_level(true)},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", unknown ? json(vocabulary.pieces[vocabulary.unknown].text) : json(nullptr)},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", vocabulary.ignore_merges},
            {"vocab", pieces},
            {"merges", merges}}}};
}

json tokenizer_config_of(const Vocabulary& vocabulary) {
  const bool sentencepiece = vocabulary.kind == TokenizerKind::kSentencePiece;
  json config = {{"tokenizer_class", sentencepiece ? "LlamaTokenizer" : "PreTrainedTokenizerFast"},
                 {"add_bos_token", vocabulary.add_bos},
                 {"add_eos_token", vocabulary.add_eos},
                 {"clean_up_tokenization_spaces", false},
                 {"added_tokens_decoder", json::object()}};
  if (sentencepiece) config["legacy"] = vocabulary.legacy;
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const Piece& piece = vocabulary.pieces[id];
    if (is_added(piece)) config["added_tokens_decoder"][std::to_string(id)] = added_token(piece);
  }
  const std::pair<const char*, int64_t> named[] = {
      {"bos_token", vocabulary.bos}, {"eos_token", vocabulary.eos}, {"pad_token", vocabulary.padding}};
  for (const auto& [key, id] : named) {
    if (holds(vocabulary, id)) config[key] = vocabulary.pieces[id].text;
  }
  if (!vocabulary.chat_template.empty()) config["chat_template"] = vocabulary.chat_template;
  return config;
}

void save_tokenizer(const Vocabulary& vocabulary, const fs::path& folder) {
  check_vocabulary(vocabulary, folder.string());
  if (vocabulary.kind == TokenizerKind::kSentencePiece) {
    write_text_file(folder / "tokenizer.model", sentencepiece_file_of(vocabulary));
  } else {
    io::write_json_file(folder / "tokenizer.json", tokenizer_json_of(vocabulary));
  }
  io::write_json_file(folder / "tokenizer_config.json", tokenizer_config_of(vocabulary));
  if (vocabulary.stops.empty()) return;
  json generation = {{"eos_token_id", json::array()}};
  if (vocabulary.eos >= 0) generation["eos_token_id"].push_back(vocabulary.eos);
  for (const int64_t id : vocabulary.stops) generation["eos_token_id"].push_back(id);
  if (vocabulary.bos >= 0) generation["bos_token_id"] = vocabulary.bos;
  io::write_json_file(folder / "generation_config.json", generation);
}

}  // namespace qalora::text
