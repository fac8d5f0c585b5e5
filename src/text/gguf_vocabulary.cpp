#include "qalora/text/gguf_vocabulary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <set>
#include <unordered_set>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/io/model_files.h"
#include "qalora/text/save_tokenizer.h"
#include "vocabulary_files.h"

namespace qalora::text {
namespace {

constexpr const char* kModel = "tokenizer.ggml.model";
constexpr const char* kPre = "tokenizer.ggml.pre";
constexpr const char* kTokens = "tokenizer.ggml.tokens";
constexpr const char* kScores = "tokenizer.ggml.scores";
constexpr const char* kTypes = "tokenizer.ggml.token_type";
constexpr const char* kMerges = "tokenizer.ggml.merges";
constexpr const char* kTemplate = "tokenizer.chat_template";

// Several names for one rule.
std::string pre_tokenizer_of(const io::GgufContents& file) {
  const std::string name = file.text(kPre).value_or("");
  for (const auto& [rule, names] :
       {std::pair<const char*, std::set<std::string>>{"llama-bpe", {"llama-bpe", "llama3", "llama-v3"}},
        {"qwen2", {"qwen2", "deepseek-r1-qwen"}},
        {"gpt-2", {"gpt-2"}}}) {
    if (names.contains(name)) return rule;
  }
  throw DataError(message(
      file.name, ": metadata '", kPre, "' is '", name.substr(0, 60),
      "', a rule of cutting text that is not known here "
      "(llama-bpe, qwen2 and gpt-2 are); put the original model's tokenizer.json beside a converted copy of the weights"));
}

bool is_byte_piece(std::string_view text) {
  const auto digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f'); };
  return text.size() == 6 && text.starts_with("<0x") && text[5] == '>' && digit(text[3]) && digit(text[4]);
}

void read_pieces(const io::GgufContents& file, Vocabulary& vocabulary) {
  const auto tokens = file.texts(kTokens);
  QALORA_REQUIRE(tokens && !tokens->empty(), DataError, file.name, ": metadata '", kTokens, "' is missing or empty");
  const auto scores = file.floats(kScores);
  const auto types = file.integers(kTypes);
  const bool sentencepiece = vocabulary.kind == TokenizerKind::kSentencePiece;
  QALORA_REQUIRE(scores || !sentencepiece, DataError, file.name, ": metadata '", kScores,
                 "' is missing, and merges follow scores");
  QALORA_REQUIRE(!scores || scores->size() == tokens->size(), DataError, file.name, ": metadata '", kScores, "' has ",
                 scores->size(), " entries, expected one for each of the ", tokens->size(), " tokens");
  QALORA_REQUIRE(!types || types->size() == tokens->size(), DataError, file.name, ": metadata '", kTypes, "' has ",
                 types->size(), " entries, expected one for each of the ", tokens->size(), " tokens");
  std::unordered_set<std::string_view> seen;
  vocabulary.pieces.reserve(tokens->size());
  for (size_t id = 0; id < tokens->size(); ++id) {
    Piece piece{.text = std::string((*tokens)[id])};
    const std::string where = message(file.name, ": token ", id, " ");
    QALORA_REQUIRE(!piece.text.empty() && valid_utf8(piece.text) && piece.text.find('\0') == std::string::npos,
                   DataError, where, "is empty or no text");
    QALORA_REQUIRE(seen.insert((*tokens)[id]).second, DataError, where, "'", piece.text.substr(0, 60),
                   "' is there twice");
    if (scores && sentencepiece) piece.score = (*scores)[id];
    QALORA_REQUIRE(std::isfinite(piece.score), DataError, where, "has a score that is not finite");
    const int64_t type = types ? (*types)[id] : 1;
    QALORA_REQUIRE(type >= 1 && type <= 6, DataError, where, "has type ", type, ", expected 1 to 6");
    piece.type = static_cast<PieceType>(type);
    QALORA_REQUIRE(piece.type != PieceType::kByte || is_byte_piece(piece.text), DataError, where, "'",
                   piece.text.substr(0, 60), "' is said to be a byte, but is not of the form <0x0A>");
    vocabulary.pieces.push_back(std::move(piece));
  }
}

// An id beyond the tokens is passed over, as the engine does.
int64_t read_id(const io::GgufContents& file, const char* name, int64_t otherwise, size_t tokens) {
  const std::string key = message("tokenizer.ggml.", name, "_token_id");
  const int64_t id = file.integer(key).value_or(otherwise);
  if (id < static_cast<int64_t>(tokens)) return id;
  if (file.has(key))
    log::warn(
        message(file.name, ": metadata '", key, "' is ", id, ", but there are ", tokens, " tokens; it is passed over"));
  return -1;
}

void read_stops(const io::GgufContents& file, Vocabulary& vocabulary) {
  static const std::set<std::string> ends = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>",
                                             "<|endoftext|>"};
  std::set<int64_t> stops;
  for (const char* name : {"eot", "eom"}) stops.insert(read_id(file, name, -1, vocabulary.pieces.size()));
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const Piece& piece = vocabulary.pieces[id];
    if (piece.type == PieceType::kControl && ends.contains(piece.text)) stops.insert(static_cast<int64_t>(id));
  }
  stops.erase(-1);
  stops.erase(vocabulary.eos);
  vocabulary.stops.assign(stops.begin(), stops.end());
}

void read_merges(const io::GgufContents& file, Vocabulary& vocabulary) {
  const auto merges = file.texts(kMerges);
  QALORA_REQUIRE(merges, DataError, file.name, ": metadata '", kMerges, "' is missing");
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    const size_t blank = merge.find(' ', 1);
    QALORA_REQUIRE(valid_utf8(merge) && blank != std::string_view::npos && blank + 1 < merge.size(), DataError,
                   file.name, ": merge ", i, " is not two pieces with a blank between them");
    vocabulary.merges.emplace_back(merge);
  }
}

std::string byte_piece(int byte) {
  std::array<char, 8> text;
  std::snprintf(text.data(), text.size(), "<0x%02X>", byte);
  return text.data();
}

Piece filler(int64_t id) { return {.text = message("[PAD", id, "]"), .score = -10000, .type = PieceType::kUnused}; }

// What the format has no key for goes by the name of the rule: the engine takes words that are pieces whole for this
// one ..
bool ignores_merges(const Vocabulary& vocabulary) { return vocabulary.pre_tokenizer == "llama-bpe"; }
// .. and models that cut text like this learnt from composed characters.
std::string normalization_of(const Vocabulary& vocabulary) { return vocabulary.pre_tokenizer == "qwen2" ? "NFC" : ""; }

void check_writable(const Vocabulary& vocabulary, int64_t rows, const std::string& name) {
  const auto count = static_cast<int64_t>(vocabulary.pieces.size());
  QALORA_REQUIRE(count <= rows, DataError, name, ": the tokenizer has ", count, " tokens, the embedding only ", rows,
                 " rows; llama.cpp wants as many of one as of the other");
  QALORA_REQUIRE(
      vocabulary.kind == TokenizerKind::kSentencePiece || !vocabulary.pre_tokenizer.empty(), DataError, name,
      ": the tokenizer cuts text by a rule that llama.cpp has no name for (it is neither LLaMA 3's, Qwen2's nor GPT-2's)");
  if (vocabulary.kind == TokenizerKind::kByteLevelBpe) {
    const char* whole = "words that are pieces are taken whole";
    QALORA_REQUIRE(vocabulary.ignore_merges == ignores_merges(vocabulary), DataError, name,
                   ": the tokenizer has ignore_merges ", vocabulary.ignore_merges ? "true" : "false",
                   ", but with the rule '", vocabulary.pre_tokenizer, "' in llama.cpp ", whole,
                   vocabulary.ignore_merges ? " never" : " always", "; texts would become other ids");
    QALORA_REQUIRE(vocabulary.normalization == normalization_of(vocabulary), DataError, name,
                   ": the tokenizer's normalizer is '", vocabulary.normalization, "', expected '",
                   normalization_of(vocabulary), "' with the rule '", vocabulary.pre_tokenizer,
                   "'; GGUF has no key for it");
  }
  std::unordered_set<std::string_view> seen;
  for (const Piece& piece : vocabulary.pieces) {
    QALORA_REQUIRE(!piece.text.empty() && piece.text.find('\0') == std::string::npos, DataError, name,
                   ": the tokenizer has a token without text");
    QALORA_REQUIRE(seen.insert(piece.text).second, DataError, name, ": two tokens of the tokenizer have the text '",
                   piece.text, "', at which llama.cpp stops");
  }
}

void add_ids(const Vocabulary& vocabulary, io::GgufMetadata& metadata) {
  const std::pair<const char*, int64_t> ids[] = {{"bos", vocabulary.bos},
                                                 {"eos", vocabulary.eos},
                                                 {"unknown", vocabulary.unknown},
                                                 {"padding", vocabulary.padding}};
  for (const auto& [name, id] : ids) {
    if (id >= 0) metadata.u32(message("tokenizer.ggml.", name, "_token_id"), id);
  }
  if (!vocabulary.stops.empty()) metadata.u32("tokenizer.ggml.eot_token_id", vocabulary.stops.front());
}

}  // namespace

bool has_gguf_vocabulary(const io::GgufContents& file) {
  const std::string model = file.text(kModel).value_or("none");
  return model != "none" && model != "no_vocab";
}

Vocabulary read_gguf_vocabulary(const io::GgufContents& file) {
  QALORA_REQUIRE(has_gguf_vocabulary(file), DataError, file.name, ": holds no tokenizer");
  const std::string model = *file.text(kModel);
  QALORA_REQUIRE(model == "llama" || model == "gpt2", DataError, file.name, ": metadata '", kModel, "' is '",
                 model.substr(0, 60), "', a tokenizer that is not read (llama and gpt2 are)");
  const bool bpe = model == "gpt2";
  Vocabulary vocabulary;
  vocabulary.kind = bpe ? TokenizerKind::kByteLevelBpe : TokenizerKind::kSentencePiece;
  read_pieces(file, vocabulary);
  if (bpe) {
    vocabulary.pre_tokenizer = pre_tokenizer_of(file);
    vocabulary.ignore_merges = ignores_merges(vocabulary);
    vocabulary.normalization = normalization_of(vocabulary);
    read_merges(file, vocabulary);
  }
  const size_t count = vocabulary.pieces.size();
  vocabulary.bos = read_id(file, "bos", bpe ? -1 : 1, count);
  vocabulary.eos = read_id(file, "eos", bpe ? -1 : 2, count);
  vocabulary.unknown = read_id(file, "unknown", bpe ? -1 : 0, count);
  vocabulary.padding = read_id(file, "padding", -1, count);
  read_stops(file, vocabulary);
  vocabulary.add_bos =
      file.flag("tokenizer.ggml.add_bos_token").value_or(!bpe || vocabulary.pre_tokenizer == "llama-bpe");
  vocabulary.add_eos = file.flag("tokenizer.ggml.add_eos_token").value_or(false);
  vocabulary.add_space_prefix = file.flag("tokenizer.ggml.add_space_prefix").value_or(!bpe);
  vocabulary.chat_template = file.text(kTemplate).value_or("");
  return vocabulary;
}

void save_gguf_tokenizer(const fs::path& model, const fs::path& folder) {
  for (const char* own : {"tokenizer.model", "tokenizer.json"}) {
    std::error_code unreadable;
    if (fs::exists(model / own, unreadable)) return;  // they count, and are copied with what else lies there
  }
  const fs::path path = io::gguf_file_of(model);
  if (path.empty()) return;
  const io::GgufFile file(path);
  if (!has_gguf_vocabulary(file.contents())) return;
  Vocabulary vocabulary;
  try {
    vocabulary = read_gguf_vocabulary(file.contents());
    check_vocabulary(vocabulary, path.string());
  } catch (const DataError& error) {  // no reason to lose the weights, which are written already
    log::warn(message(error.what(), "; the model in ", folder.string(), " has no tokenizer beside it"));
    return;
  }
  save_tokenizer(vocabulary, folder);
}

void add_gguf_vocabulary(const Vocabulary& vocabulary, int64_t rows, const std::string& name,
                         io::GgufMetadata& metadata) {
  check_writable(vocabulary, rows, name);
  const bool bpe = vocabulary.kind == TokenizerKind::kByteLevelBpe;
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  const auto add = [&](const Piece& piece) {
    tokens.push_back(piece.text);
    scores.push_back(piece.score);
    types.push_back(static_cast<int32_t>(piece.type));
  };
  for (const Piece& piece : vocabulary.pieces) add(piece);
  for (auto id = static_cast<int64_t>(vocabulary.pieces.size()); id < rows; ++id) add(filler(id));
  metadata.text(kModel, bpe ? "gpt2" : "llama");
  metadata.text(kPre, bpe ? vocabulary.pre_tokenizer : "default");
  metadata.texts(kTokens, tokens);
  if (!bpe) metadata.floats(kScores, scores);
  metadata.i32s(kTypes, types);
  if (bpe) metadata.texts(kMerges, vocabulary.merges);
  add_ids(vocabulary, metadata);
  metadata.flag("tokenizer.ggml.add_bos_token", vocabulary.add_bos);
  metadata.flag("tokenizer.ggml.add_eos_token", vocabulary.add_eos);
  if (!bpe) metadata.flag("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
  if (!vocabulary.chat_template.empty()) metadata.text(kTemplate, vocabulary.chat_template);
}

Vocabulary placeholder_vocabulary(int64_t rows) {
  Vocabulary vocabulary;
  const auto add = [&](Piece piece) {
    if (static_cast<int64_t>(vocabulary.pieces.size()) < rows) vocabulary.pieces.push_back(std::move(piece));
  };
  add({.text = "<unk>", .type = PieceType::kUnknown});
  add({.text = "<s>", .type = PieceType::kControl});
  add({.text = "</s>", .type = PieceType::kControl});
  for (int byte = 0; byte < 256; ++byte) add({.text = byte_piece(byte), .type = PieceType::kByte});
  while (static_cast<int64_t>(vocabulary.pieces.size()) < rows)
    add(filler(static_cast<int64_t>(vocabulary.pieces.size())));
  if (rows > 0) vocabulary.unknown = 0;
  if (rows > 1) vocabulary.bos = 1;
  if (rows > 2) vocabulary.eos = 2;
  return vocabulary;
}

}  // namespace qalora::text
