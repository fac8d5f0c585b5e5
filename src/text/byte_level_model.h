// Byte-level BPE: GPT-2's, LLaMA 3's, Qwen's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bpe.h"
#include "pre_tokenizer.h"
#include "token_model.h"
#include "unicode.h"

namespace qalora::text {

// What a file says of such a model, whatever the format.
struct ByteLevelParts {
  std::string name;                 // begins messages
  std::vector<std::string> pieces;  // by id, in byte letters; "" where an id is an added token's or nobody's
  // "a b", best first, as vocabularies carry them; empty where `ranked`.
  std::vector<std::pair<std::string, std::string>> merges;
  bool ranked = false;  // tiktoken: a pair is joined when it makes a piece, and its rank is the piece's id
  bool ignore_merges = false;
  Normalization normalization = Normalization::kNone;
  std::vector<SplitStep> steps;
  int64_t unknown = -1;  // what a byte without a piece becomes; -1: an error
  int64_t bos = -1, eos = -1;
};

// DataError for duplicates, and for merges that name or make what is no piece.
std::unique_ptr<TokenModel> make_byte_level_model(ByteLevelParts parts);

}  // namespace qalora::text
