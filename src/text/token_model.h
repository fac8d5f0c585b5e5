// What turns a stretch of text without special tokens into ids: one interface for every algorithm.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/text/vocabulary.h"

namespace qalora::text {

// What one id stands for in decoded text.
enum class TokenKind : uint8_t { kText, kByte, kUnknown, kSpecial, kAdded, kGap };
struct Token {
  std::string text;  // bytes: blanks as blanks, a byte piece as its byte
  TokenKind kind = TokenKind::kGap;
};

class TokenModel {
 public:
  virtual ~TokenModel() = default;

  virtual TokenizerKind kind() const = 0;
  virtual int64_t size() const = 0;                        // ids of its own, added tokens not counted
  virtual Token token(int64_t id) const = 0;               // id < size()
  virtual std::string piece(int64_t id) const = 0;         // as the vocabulary spells it
  virtual int64_t find(std::string_view piece) const = 0;  // -1 when it is none
  virtual int64_t bos() const { return -1; }               // as the model's own file says
  virtual int64_t eos() const { return -1; }
  virtual int64_t unknown() const { return -1; }
  // Ids of a stretch of text. prefix: it begins a text, so what the model puts in front of a text belongs there.
  // Thread-safe.
  virtual void append(std::string_view text, bool prefix, std::vector<int64_t>& ids) const = 0;
  // What the text becomes before added tokens that are `normalized` are looked for; append() is then given such text.
  virtual std::string normalized(std::string_view text) const { return std::string(text); }
  virtual bool normalizes() const { return false; }
  virtual bool prefix_is_dropped() const { return false; }  // decoding: the first text's leading blank is the prefix
  virtual std::string unknown_text() const { return ""; }   // what an unknown piece decodes to
  // Pieces, merges and what else is the model's own; special tokens are the caller's.
  virtual Vocabulary vocabulary() const = 0;
};

}  // namespace qalora::text
