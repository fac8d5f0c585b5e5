// What a tokenizer is made of, in one shape for every file format that can carry one (tokenizer.model, tokenizer.json,
// GGUF's metadata).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qalora::text {

enum class TokenizerKind { kSentencePiece, kByteLevelBpe };

// The numbers are SentencePiece's and GGUF's alike.
enum class PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Piece {
  std::string text;  // as the format's own vocabulary spells it: U+2581 for a blank (SentencePiece), GPT-2's byte
                     // letters (byte-level BPE); control and user-defined pieces as they stand in text
  float score = 0;   // SentencePiece only
  PieceType type = PieceType::kNormal;
};

struct Vocabulary {
  TokenizerKind kind = TokenizerKind::kSentencePiece;
  std::vector<Piece> pieces;  // by id, added tokens included; no gaps (a gap is a kUnused piece with a text of its own)
  std::vector<std::string> merges;  // byte-level BPE, "a b", best first
  std::string pre_tokenizer;  // byte-level BPE: GGUF's name for it, "llama-bpe", "qwen2", "gpt-2"; "" where it has none
  bool ignore_merges =
      false;  // byte-level BPE: a word that is a piece is that piece, whatever the merges would make of it
  std::string normalization;  // byte-level BPE: "NFC", "NFD", "NFKC", "NFKD" or "" for none, before the text is cut
  int64_t bos = -1, eos = -1, unknown = -1, padding = -1;  // -1: none
  std::vector<int64_t> stops;                              // further ids that end a text
  bool add_bos = true, add_eos = false, add_space_prefix = true;
  // SentencePiece: with `legacy` text behind a special token begins with a blank again; with the other the blank in
  // front is left out where the text begins with one.
  bool legacy = true, prefix_only_without = false;
  std::string chat_template;  // "" when there is none
};

}  // namespace qalora::text
