#include "blank_mark_model.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>
#include <mutex>
#include <set>

#include "piece_table.h"
#include "utf8.h"
#include "word_encoder.h"

namespace qalora::text {
namespace {

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (size_t at; (at = text.find(from)) != std::string_view::npos; text.remove_prefix(at + from.size())) {
    result += text.substr(0, at);
    result += to;
  }
  return result += text;
}

std::string byte_piece(int byte) {
  char name[8];
  std::snprintf(name, sizeof name, "<0x%02X>", byte);
  return name;
}

bool only_marks(std::string_view piece) {
  while (piece.starts_with(kBlankMark)) piece.remove_prefix(kBlankMark.size());
  return piece.empty();
}

class BlankMarkModel final : public TokenModel {
 public:
  explicit BlankMarkModel(BlankMarkParts parts)
      : parts_(std::move(parts)),
        table_(parts_.name, parts_.pieces),
        merges_(table_.read_merges(parts_.name, parts_.merges)) {
    for (int byte = 0; byte < 256; ++byte) {
      byte_ids_[byte] = static_cast<int32_t>(table_.find(byte_piece(byte)));
      QALORA_REQUIRE(byte_ids_[byte] >= 0, DataError, parts_.name, ": byte_fallback is set, but there is no piece ",
                     byte_piece(byte));
    }
    by_words_ = std::none_of(parts_.pieces.begin(), parts_.pieces.end(), has_inner_blank_mark);
  }

  TokenizerKind kind() const override { return TokenizerKind::kSentencePiece; }
  int64_t size() const override { return std::ssize(parts_.pieces); }
  std::string piece(int64_t id) const override { return parts_.pieces[id]; }
  int64_t find(std::string_view piece) const override { return table_.find(piece); }
  int64_t bos() const override { return parts_.bos; }
  int64_t eos() const override { return parts_.eos; }
  int64_t unknown() const override { return parts_.unknown; }
  bool prefix_is_dropped() const override { return parts_.adds_prefix; }
  std::string unknown_text() const override { return parts_.unknown >= 0 ? parts_.pieces[parts_.unknown] : ""; }

  Token token(int64_t id) const override {
    const std::string& piece = parts_.pieces[id];
    if (piece.empty()) return {};
    if (id == parts_.unknown) return {piece, TokenKind::kUnknown};
    const auto byte = std::find(byte_ids_.begin(), byte_ids_.end(), id);
    if (byte != byte_ids_.end()) return {std::string(1, static_cast<char>(byte - byte_ids_.begin())), TokenKind::kByte};
    return {replaced(piece, kBlankMark, " "), TokenKind::kText};
  }

  void append(std::string_view text, bool prefix, std::vector<int64_t>& ids) const override {
    if (text.empty()) return;
    std::string marked = replaced(text, " ", kBlankMark);
    if (prefix && parts_.adds_prefix && !(parts_.prefix_only_without && marked.starts_with(kBlankMark)))
      marked.insert(0, kBlankMark);
    const std::lock_guard lock(mutex_);
    for (std::string_view rest = marked; !rest.empty();) {
      const std::string_view word = rest.substr(0, by_words_ ? word_end(rest) : rest.size());
      append_word(word, ids);
      rest.remove_prefix(word.size());
    }
  }

  Vocabulary vocabulary() const override;

 private:
  static bool has_inner_blank_mark(std::string_view piece) {
    while (piece.starts_with(kBlankMark)) piece.remove_prefix(kBlankMark.size());
    return piece.find(kBlankMark) != std::string_view::npos;
  }
  bool blanks_share_a_rank() const;
  int64_t wanted_merges(std::string_view piece) const;
  // Where no piece has a mark behind another character, nothing is joined across the front of a run of marks.
  static size_t word_end(std::string_view text) {
    size_t at = 0;
    while (text.substr(at).starts_with(kBlankMark)) at += kBlankMark.size();
    return std::min(text.size(), text.find(kBlankMark, at));
  }

  void append_word(std::string_view word, std::vector<int64_t>& ids) const {
    if (const auto* known = known_.find(word)) {
      ids.insert(ids.end(), known->begin(), known->end());
      return;
    }
    const size_t before = ids.size();
    std::vector<int32_t> symbols;
    for (std::string_view rest = word; !rest.empty();) {
      const std::string_view character = rest.substr(0, std::max<size_t>(1, utf8_character(rest)));
      rest.remove_prefix(character.size());
      if (const int64_t id = table_.find(character); id >= 0) {
        symbols.push_back(static_cast<int32_t>(id));
        continue;
      }
      for (const char byte : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
    }
    merges_.apply(symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
    known_.add(word, ids, before);
  }

  BlankMarkParts parts_;
  PieceTable table_;
  Merges merges_;
  std::array<int32_t, 256> byte_ids_;
  bool by_words_ = false;
  mutable std::mutex mutex_;
  mutable KnownWords known_;
};

// In SentencePiece all runs of blanks have one score, and files whose merges are sorted by score and then by the
// lengths of the halves mix the ways to make them. true for such a list, where one rank for all of them splits every
// run of blanks as the list does.
bool BlankMarkModel::blanks_share_a_rank() const {
  constexpr int64_t kLongestRun = 64;  // four times LLaMA's
  Merges shared;
  std::set<int64_t> made;
  bool mixed = false;
  int64_t blocks = 0, last = -1, longest = 0;
  for (const auto& [left, right] : parts_.merges) {
    const std::string both = left + right;
    const int64_t id = only_marks(both) ? table_.find(both) : -1;
    if (id >= 0) {
      mixed |= id != last && made.contains(id);
      blocks += last < 0;
      made.insert(id);
      longest = std::max(longest, static_cast<int64_t>(both.size() / kBlankMark.size()));
      shared.add(static_cast<int32_t>(table_.find(left)), static_cast<int32_t>(table_.find(right)), 0,
                 static_cast<int32_t>(id));
    }
    last = id;
  }
  if (!mixed || blocks != 1 || longest > kLongestRun) return false;
  for (int64_t count = 2; count <= 4 * longest; ++count) {  // by then the splits repeat
    std::vector<int32_t> listed(count, static_cast<int32_t>(table_.find(kBlankMark))), equal = listed;
    merges_.apply(listed);
    shared.apply(equal);
    if (listed != equal) return false;
  }
  return true;
}

// In how many ways the piece can be cut into two pieces.
int64_t BlankMarkModel::wanted_merges(std::string_view piece) const {
  QALORA_REQUIRE(piece.size() <= kLongestPiece, DataError, parts_.name, ": a piece of ", piece.size(),
                 " bytes; expected at most ", kLongestPiece);
  int64_t wanted = 0;
  for (size_t at = 1; at < piece.size(); ++at)
    wanted += table_.find(piece.substr(0, at)) >= 0 && table_.find(piece.substr(at)) >= 0;
  return wanted;
}

// SentencePiece's scores give the same ids as the merges when every way to make a piece is among the merges, one behind
// the other: then the place of a piece in the list is its rank. Special and added tokens are not made of others.
Vocabulary BlankMarkModel::vocabulary() const {
  Vocabulary result;
  result.kind = TokenizerKind::kSentencePiece;
  result.unknown = parts_.unknown;
  result.add_space_prefix = parts_.adds_prefix;
  result.prefix_only_without = parts_.adds_prefix && parts_.prefix_only_without;
  std::vector<int64_t> ways(parts_.pieces.size(), 0);
  std::vector<float> scores(parts_.pieces.size(), 0);
  const bool shared = blanks_share_a_rank();
  int64_t last = -1;
  float rank = 0;
  for (const auto& [left, right] : parts_.merges) {
    const int64_t id = table_.find(left + right);
    const bool same_rank =
        id == last || (shared && last >= 0 && only_marks(parts_.pieces[id]) && only_marks(parts_.pieces[last]));
    QALORA_REQUIRE(same_rank || ways[id] == 0, DataError, parts_.name, ": the merges of '", parts_.pieces[id],
                   "' do not stand together; no SentencePiece model gives the same ids");
    if (!same_rank) rank += 1;
    scores[id] = -rank;
    last = id;
    ++ways[id];
  }
  std::set<int64_t> whole(parts_.added.begin(), parts_.added.end());
  whole.insert({parts_.unknown, parts_.bos, parts_.eos});
  whole.insert(byte_ids_.begin(), byte_ids_.end());
  for (size_t id = 0; id < parts_.pieces.size(); ++id) {
    const std::string& piece = parts_.pieces[id];
    const bool byte = std::find(byte_ids_.begin(), byte_ids_.end(), static_cast<int32_t>(id)) != byte_ids_.end();
    const int64_t wanted = ways[id] == 0 && whole.contains(static_cast<int64_t>(id)) ? 0 : wanted_merges(piece);
    QALORA_REQUIRE(wanted == ways[id], DataError, parts_.name, ": '", piece, "' has ", ways[id], " merges of ", wanted,
                   " that its parts allow; no SentencePiece model gives the same ids");
    const PieceType type = static_cast<int64_t>(id) == parts_.unknown ? PieceType::kUnknown
                           : byte                                     ? PieceType::kByte
                                                                      : PieceType::kNormal;
    result.pieces.push_back({piece, scores[id], type});
  }
  return result;
}

}  // namespace

std::unique_ptr<TokenModel> make_blank_mark_model(BlankMarkParts parts) {
  return std::make_unique<BlankMarkModel>(std::move(parts));
}

}  // namespace qalora::text
