#include "sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include <optional>

#include "qalora/core/error.h"
#include "sentencepiece_file.h"
#include "word_encoder.h"

namespace qalora::text {
namespace {

std::string with_blanks(std::string_view piece) {
  std::string text;
  for (size_t mark = piece.find(kBlankMark); mark != std::string_view::npos; mark = piece.find(kBlankMark)) {
    text += piece.substr(0, mark);
    text += ' ';
    piece.remove_prefix(mark + kBlankMark.size());
  }
  return text += piece;
}

class SentencePieceModel final : public TokenModel {
 public:
  SentencePieceModel(const fs::path& path, std::string_view bytes)
      : path_(path),
        file_(inspect_sentencepiece(path, bytes)) {
    const auto status = model_.LoadFromSerializedProto(without_dummy_prefix(bytes));
    QALORA_REQUIRE(status.ok(), DataError, path.string(),
                   ": the SentencePiece library refuses it: ", status.ToString());
    encoder_.emplace(model_, file_.context_free);
    if (encoder_->by_words()) return;
    unchanged_.emplace();
    const auto again = unchanged_->LoadFromSerializedProto(bytes);
    QALORA_REQUIRE(again.ok(), DataError, path.string(), ": the SentencePiece library refuses it: ", again.ToString());
  }

  TokenizerKind kind() const override { return TokenizerKind::kSentencePiece; }
  int64_t size() const override { return model_.GetPieceSize(); }
  std::string piece(int64_t id) const override { return model_.IdToPiece(static_cast<int>(id)); }
  int64_t bos() const override { return model_.bos_id(); }
  int64_t eos() const override { return model_.eos_id(); }
  int64_t unknown() const override { return model_.unk_id(); }
  bool prefix_is_dropped() const override { return file_.adds_dummy_prefix; }
  std::string unknown_text() const override { return file_.unknown; }

  Token token(int64_t id) const override {
    const int number = static_cast<int>(id);
    const std::string text = model_.IdToPiece(number);
    // "<0x0A>"
    if (model_.IsByte(number))
      return {std::string(1, static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16))), TokenKind::kByte};
    if (model_.IsControl(number)) return {text, TokenKind::kSpecial};
    if (model_.IsUnknown(number)) return {text, TokenKind::kUnknown};
    return {with_blanks(text), TokenKind::kText};
  }

  int64_t find(std::string_view piece) const override {
    const int id = model_.PieceToId(piece);
    return id != model_.unk_id() || piece == model_.IdToPiece(id) ? id : -1;
  }

  void append(std::string_view text, bool prefix, std::vector<int64_t>& ids) const override {
    std::string reason;
    if (prefix && unchanged_) {
      std::vector<int> found;
      const auto status = unchanged_->Encode(text, &found);
      if (!status.ok()) reason = status.ToString();
      ids.insert(ids.end(), found.begin(), found.end());
    } else if (prefix && file_.adds_dummy_prefix) {
      reason = encoder_->append(message(' ', text), ids);
    } else {
      reason = encoder_->append(text, ids);
    }
    QALORA_REQUIRE(reason.empty(), DataError, path_.string(),
                   ": the SentencePiece library cannot encode the text: ", reason);
  }

  Vocabulary vocabulary() const override {
    QALORA_REQUIRE(file_.context_free, DataError, path_.string(),
                   ": only a BPE model that leaves text and blanks as they are fits into another format");
    Vocabulary result;
    result.kind = TokenizerKind::kSentencePiece;
    result.add_space_prefix = file_.adds_dummy_prefix;
    result.unknown = model_.unk_id();
    result.padding = model_.pad_id();
    for (int id = 0; id < model_.GetPieceSize(); ++id) {
      const PieceType type = model_.IsByte(id)                 ? PieceType::kByte
                             : model_.IsControl(id)            ? PieceType::kControl
                             : model_.IsUnknown(id)            ? PieceType::kUnknown
                             : model_.IsUnused(id)             ? PieceType::kUnused
                             : file_.user_defined.contains(id) ? PieceType::kUserDefined
                                                               : PieceType::kNormal;
      result.pieces.push_back({model_.IdToPiece(id), model_.GetScore(id), type});
    }
    return result;
  }

 private:
  fs::path path_;
  SentencePieceFile file_;
  sentencepiece::SentencePieceProcessor model_;  // told to add no dummy prefix; we put the blank in front ourselves
  std::optional<WordEncoder> encoder_;
  // As the file has it. Where blanks collapse, a blank of ours in front would be lost, so the library must add its own.
  std::optional<sentencepiece::SentencePieceProcessor> unchanged_;
};

}  // namespace

std::unique_ptr<TokenModel> make_sentencepiece_model(const fs::path& path, std::string_view bytes) {
  return std::make_unique<SentencePieceModel>(path, bytes);
}

}  // namespace qalora::text
