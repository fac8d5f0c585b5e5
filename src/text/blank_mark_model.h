// LLaMA 1 and 2 as a tokenizer.json: BPE on characters, blanks written as U+2581, bytes for what has no piece.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "token_model.h"

namespace qalora::text {

struct BlankMarkParts {
  std::string name;                                         // begins messages
  std::vector<std::string> pieces;                          // by id; "" where an id is nobody's
  std::vector<std::pair<std::string, std::string>> merges;  // best first
  int64_t unknown = -1;
  bool adds_prefix = true;           // a blank goes in front of a text
  bool prefix_only_without = false;  // not where it begins with one
  int64_t bos = -1, eos = -1;
  std::vector<int64_t> added;  // ids of added tokens, which no merge need make
};

// DataError for duplicates, merges that name or make no piece, and a vocabulary without the 256 byte pieces.
std::unique_ptr<TokenModel> make_blank_mark_model(BlankMarkParts parts);

}  // namespace qalora::text
