// Tokenizers of the LLaMA family, SentencePiece and byte-level BPE, with Hugging Face's rules for special tokens and
// prefixes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/text/vocabulary.h"

namespace qalora::text {

class Tokenizer {
 public:
  // Reads tokenizer.model (SentencePiece, or LLaMA 3's ranks), else tokenizer.json (byte-level BPE), and, when there,
  // tokenizer_config.json (add_bos_token, add_eos_token, legacy, special tokens), special_tokens_map.json,
  // added_tokens.json, generation_config.json (extra end-of-sequence ids), from a model's folder. DataError for what
  // would change ids and is not supported.
  // Or a tokenizer.model under another name, NAME.model, with the same files beside it.
  explicit Tokenizer(const fs::path& folder);
  // A vocabulary from elsewhere; `name` is the file it comes from: folder(), and the beginning of every message.
  Tokenizer(const Vocabulary& vocabulary, const fs::path& name);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  const fs::path& folder() const;
  static bool exists(const fs::path& folder);  // a tokenizer.model or tokenizer.json lies in the folder

  // Ids of text. Special tokens written in the text ("</s>") become their ids only with parse_special; added tokens
  // that are not special always do.
  // add_bos: exactly one BOS in front, unless the text already begins with it and parse_special is set.
  struct EncodeOptions {
    bool add_bos = false;
    bool add_eos = false;
    bool parse_special = false;
  };
  std::vector<int64_t> encode(std::string_view text, EncodeOptions options) const;
  // What follows other text: no dummy prefix is inserted in front ("\nA" after a template).
  std::vector<int64_t> encode_continuation(std::string_view text) const;
  std::string decode(const std::vector<int64_t>& ids, bool skip_special = true) const;
  // Text of one more id given those before it: safe for streaming (no prefix is stripped inside, incomplete UTF-8 is
  // held back).
  std::string decode_next(const std::vector<int64_t>& before, int64_t id) const;
  std::string piece(int64_t id) const;                 // "" where the vocabulary has a gap
  int64_t special_id(std::string_view content) const;  // id of a special or added token, -1 when `content` is none

  int64_t vocab_size() const;  // highest id + 1, added tokens included
  int64_t bos_id() const;      // -1 when there is none; a null in tokenizer_config.json leaves the model file's own
  int64_t eos_id() const;
  const std::vector<int64_t>& stop_ids() const;  // eos and the extra ones of generation_config.json
  bool adds_bos() const;                         // tokenizer_config.json's add_bos_token (default true)
  bool adds_eos() const;
  bool legacy() const;
  const std::string& chat_template() const;  // "" when there is none
  std::string fingerprint() const;           // SHA-256 of the model's file and the rules read beside it
  TokenizerKind kind() const;
  // Everything that another format needs to hold this tokenizer. DataError where the shape of a Vocabulary is too small
  // for it.
  Vocabulary vocabulary() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qalora::text
