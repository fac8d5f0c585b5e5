#include "piece_table.h"

namespace qalora::text {
namespace {

constexpr size_t kLongestWord = 48;      // longer ones hardly come again
constexpr size_t kKnownWords = 1 << 18;  // about 40 MB; then the table starts anew

}  // namespace

PieceTable::PieceTable(const std::string& name, const std::vector<std::string>& pieces) {
  QALORA_REQUIRE(pieces.size() < kMostPieces, DataError, name, ": ", pieces.size(), " pieces are too many");
  ids_.reserve(pieces.size());
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].empty()) continue;
    const auto [place, fresh] = ids_.emplace(pieces[id], static_cast<int32_t>(id));
    QALORA_REQUIRE(fresh, DataError, name, ": the piece '", pieces[id], "' has the ids ", place->second, " and ", id);
  }
}

Merges PieceTable::read_merges(const std::string& name,
                               const std::vector<std::pair<std::string, std::string>>& merges) const {
  Merges result;
  result.reserve(merges.size());
  int32_t rank = 0;
  for (const auto& [left, right] : merges) {
    const int64_t a = find(left), b = find(right), both = find(left + right);
    QALORA_REQUIRE(a >= 0 && b >= 0 && both >= 0, DataError, name, ": merge ", rank, " joins '", left, "' and '", right,
                   "', but '",
                   a < 0   ? left
                   : b < 0 ? right
                           : left + right,
                   "' is no piece of the vocabulary");
    result.add(static_cast<int32_t>(a), static_cast<int32_t>(b), rank++, static_cast<int32_t>(both));
  }
  return result;
}

void KnownWords::add(std::string_view word, const std::vector<int64_t>& ids, size_t begin) {
  if (word.size() > kLongestWord) return;
  if (words_.size() == kKnownWords) words_.clear();
  words_.emplace(word, std::vector<int64_t>(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end()));
}

}  // namespace qalora::text
