#include "byte_level_model.h"

#include <algorithm>
#include <array>
#include <mutex>

#include "byte_letters.h"
#include "piece_table.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "utf8.h"

namespace qalora::text {
namespace {

class ByteLevelModel final : public TokenModel {
 public:
  explicit ByteLevelModel(ByteLevelParts parts)
      : parts_(std::move(parts)),
        words_(parts_.steps, parts_.name),
        table_(parts_.name, parts_.pieces) {
    for (int byte = 0; byte < 256; ++byte) byte_ids_[byte] = static_cast<int32_t>(find(byte_letters()[byte]));
    QALORA_REQUIRE(std::any_of(byte_ids_.begin(), byte_ids_.end(), [](int32_t id) { return id >= 0; }), DataError,
                   parts_.name, ": none of its pieces is a single byte; this is no byte-level vocabulary");
    if (parts_.ranked) {
      rank_pairs();
    } else {
      merges_ = table_.read_merges(parts_.name, parts_.merges);
    }
  }

  TokenizerKind kind() const override { return TokenizerKind::kByteLevelBpe; }
  int64_t size() const override { return std::ssize(parts_.pieces); }
  std::string piece(int64_t id) const override { return parts_.pieces[id]; }
  int64_t bos() const override { return parts_.bos; }
  int64_t eos() const override { return parts_.eos; }
  int64_t unknown() const override { return parts_.unknown; }
  bool normalizes() const override { return parts_.normalization != Normalization::kNone; }
  std::string normalized(std::string_view text) const override { return normalize(text, parts_.normalization); }

  Token token(int64_t id) const override {
    const std::string& piece = parts_.pieces[id];
    if (piece.empty()) return {};
    // A piece that is not spelled in byte letters stands for itself, as in the tokenizers library.
    return {from_letters(piece).value_or(piece), TokenKind::kText};
  }

  int64_t find(std::string_view piece) const override { return table_.find(piece); }

  void append(std::string_view text, bool prefix, std::vector<int64_t>& ids) const override {
    const std::lock_guard lock(mutex_);
    while (!text.empty()) {
      size_t end = 0;
      for (size_t length; end < text.size() && (length = utf8_character(text.substr(end))) > 0;) end += length;
      words_.split(text.substr(0, end), prefix, [&](std::string_view word) { append_word(word, ids); });
      prefix = false;
      if (end == text.size()) return;
      append_word(text.substr(end, 1), ids);  // a byte of no character is nobody's word
      text.remove_prefix(end + 1);
    }
  }

  Vocabulary vocabulary() const override;

 private:
  // Every way to cut a piece into two pieces.
  template <typename F>
  void each_cut(int32_t id, const F& cut) const {
    const std::string_view piece = parts_.pieces[id];
    for (size_t at = 1; at < piece.size(); ++at) {
      if ((static_cast<unsigned char>(piece[at]) & 0xc0) == 0x80) continue;  // inside a letter
      const int64_t left = find(piece.substr(0, at)), right = find(piece.substr(at));
      if (left >= 0 && right >= 0) cut(static_cast<int32_t>(left), static_cast<int32_t>(right));
    }
  }

  void rank_pairs() {
    for (int32_t id = 0; id < std::ssize(parts_.pieces); ++id) {
      each_cut(id, [&](int32_t left, int32_t right) { merges_.add(left, right, id, id); });
    }
  }

  void append_word(std::string_view word, std::vector<int64_t>& ids) const {
    if (const auto* known = known_.find(word)) {
      ids.insert(ids.end(), known->begin(), known->end());
      return;
    }
    const size_t before = ids.size();
    const int64_t whole = parts_.ignore_merges ? find(to_letters(word)) : -1;
    whole >= 0 ? ids.push_back(whole) : join_bytes(word, ids);
    known_.add(word, ids, before);
  }

  void join_bytes(std::string_view word, std::vector<int64_t>& ids) const {
    QALORA_REQUIRE(word.size() < kMostPieces, DataError, parts_.name, ": a word of ", word.size(),
                   " bytes is too long");
    std::vector<int32_t> symbols;
    for (const char c : word) {
      const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
      QALORA_REQUIRE(id >= 0 || parts_.unknown >= 0, DataError, parts_.name,
                     ": the vocabulary has no piece for the byte ", static_cast<int>(static_cast<unsigned char>(c)),
                     ", which the text has");
      symbols.push_back(id >= 0 ? id : static_cast<int32_t>(parts_.unknown));
    }
    merges_.apply(symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
  }

  ByteLevelParts parts_;
  PreTokenizer words_;
  PieceTable table_;
  std::array<int32_t, 256> byte_ids_;
  Merges merges_;
  mutable std::mutex mutex_;  // of words_ and known_
  mutable KnownWords known_;
};

Vocabulary ByteLevelModel::vocabulary() const {
  Vocabulary result;
  result.kind = TokenizerKind::kByteLevelBpe;
  result.pre_tokenizer = name_of_steps(parts_.steps);
  result.ignore_merges = parts_.ignore_merges;
  result.normalization = normalization_name(parts_.normalization);
  result.unknown = parts_.unknown;
  result.add_space_prefix = false;
  for (const std::string& piece : parts_.pieces) result.pieces.push_back({piece, 0, PieceType::kNormal});
  for (const auto& [left, right] : parts_.merges) result.merges.push_back(left + ' ' + right);
  if (!parts_.ranked) return result;
  // Ranks as a list: the ways to make a piece stand one behind the other, those whose halves were learnt first in
  // front.
  for (int32_t id = 0; id < std::ssize(parts_.pieces); ++id) {
    std::vector<std::pair<int32_t, int32_t>> cuts;
    each_cut(id, [&](int32_t left, int32_t right) { cuts.emplace_back(left, right); });
    std::sort(cuts.begin(), cuts.end());
    for (const auto& [left, right] : cuts) result.merges.push_back(parts_.pieces[left] + ' ' + parts_.pieces[right]);
  }
  return result;
}

}  // namespace

std::unique_ptr<TokenModel> make_byte_level_model(ByteLevelParts parts) {
  return std::make_unique<ByteLevelModel>(std::move(parts));
}

}  // namespace qalora::text
