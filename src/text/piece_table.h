// Pieces by their text, and words whose ids are known already: what both kinds of BPE share.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bpe.h"
#include "qalora/core/error.h"

namespace qalora::text {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <typename T>
using ByText = std::unordered_map<std::string, T, TextHash, std::equal_to<>>;

inline constexpr size_t kMostPieces = size_t{1} << 30;  // ids and places are 32 bits
inline constexpr size_t kLongestPiece =
    1024;  // in bytes, where all ways to cut a piece in two are tried: eight times any model's

class PieceTable {
 public:
  // pieces: by id, "" for none. DataError, beginning with `name`, for duplicates.
  PieceTable(const std::string& name, const std::vector<std::string>& pieces);
  int64_t find(std::string_view piece) const {
    const auto found = ids_.find(piece);
    return found == ids_.end() ? -1 : found->second;
  }
  // Merges in their order. DataError for one that joins what is no piece, or makes none.
  Merges read_merges(const std::string& name, const std::vector<std::pair<std::string, std::string>>& merges) const;

 private:
  ByText<int32_t> ids_;
};

class KnownWords {
 public:
  const std::vector<int64_t>* find(std::string_view word) const {
    const auto found = words_.find(word);
    return found == words_.end() ? nullptr : &found->second;
  }
  // ids from `begin` on are the word's
  void add(std::string_view word, const std::vector<int64_t>& ids, size_t begin);

 private:
  ByText<std::vector<int64_t>> words_;
};

}  // namespace qalora::text
