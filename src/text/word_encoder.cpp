#include "word_encoder.h"

#include <sentencepiece_processor.h>

namespace qalora::text {
namespace {

constexpr size_t kLongestWord = 48;      // longer ones hardly come again
constexpr size_t kKnownWords = 1 << 18;  // about 40 MB; then the table starts anew

// A blank behind another character.
bool has_inner_blank(std::string_view piece) {
  while (piece.starts_with(kBlankMark)) piece.remove_prefix(kBlankMark.size());
  return piece.find(kBlankMark) != std::string_view::npos;
}

bool cuts_at_blanks(const sentencepiece::SentencePieceProcessor& processor) {
  if (processor.PieceToId(kBlankMark) == processor.unk_id()) return false;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    if (has_inner_blank(processor.IdToPiece(id))) return false;
  }
  return true;
}

// Where the word that begins at `begin` ends: in front of the next run of blanks. The mark itself counts as a blank
// too.
size_t word_end(std::string_view text, size_t begin) {
  size_t at = text.find_first_not_of(' ', begin);
  do {
    at = text.find(' ', at);
    if (at == std::string_view::npos) return text.size();
    if (!text.substr(begin, at - begin).ends_with(kBlankMark)) return at;
    at = text.find_first_not_of(' ', at);
  } while (at != std::string_view::npos);
  return text.size();
}

}  // namespace

WordEncoder::WordEncoder(const sentencepiece::SentencePieceProcessor& processor, bool context_free)
    : processor_(processor),
      by_words_(context_free && cuts_at_blanks(processor)) {}

std::string WordEncoder::append_whole(std::string_view text, std::vector<int64_t>& ids) const {
  std::vector<int> found;
  const auto status = processor_.Encode(text, &found);
  if (!status.ok()) return status.ToString();
  ids.insert(ids.end(), found.begin(), found.end());
  return "";
}

std::string WordEncoder::append(std::string_view text, std::vector<int64_t>& ids) const {
  if (!by_words_) return append_whole(text, ids);
  const std::lock_guard lock(mutex_);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = word_end(text, begin);
    const std::string_view word = text.substr(begin, end - begin);
    begin = end;
    if (const auto found = known_.find(word); found != known_.end()) {
      ids.insert(ids.end(), found->second.begin(), found->second.end());
      continue;
    }
    const size_t before = ids.size();
    if (std::string reason = append_whole(word, ids); !reason.empty()) return reason;
    if (word.size() > kLongestWord) continue;
    if (known_.size() == kKnownWords) known_.clear();
    known_.emplace(word, std::vector<int64_t>(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end()));
  }
  return "";
}

}  // namespace qalora::text
