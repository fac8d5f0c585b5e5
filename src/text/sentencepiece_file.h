// What is looked at in a tokenizer.model before the SentencePiece library gets it.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "qalora/core/file.h"

namespace qalora::text {

struct SentencePieceFile {
  int64_t pieces = 0;
  bool adds_dummy_prefix = true;  // a blank goes in front of every text
  // What text becomes before it is cut is the same whatever stands around it, and merges follow scores alone.
  bool context_free = true;
  std::string unknown = " \u2047 ";  // what an unknown piece decodes to
  std::set<int64_t>
      user_defined;  // ids of pieces that are cut out of a text before anything else; the library does not tell
};

// "IQ== 0": base64, one blank, a rank; LLaMA 3's tokenizer.model begins so.
bool looks_like_tiktoken(std::string_view bytes);

// Walks the protobuf's fields. DataError that says what the file is instead (tiktoken, JSON, an LFS pointer, a part of
// a file), because the library's own answer is only "could not parse".
SentencePieceFile inspect_sentencepiece(const fs::path& path, std::string_view bytes);

// The same model with another normaliser setting. Protobuf merges a message field that occurs twice, so a few bytes at
// the end override the flag without touching the rest.
std::string without_dummy_prefix(std::string_view bytes);

}  // namespace qalora::text
