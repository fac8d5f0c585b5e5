#include "sentencepiece_file.h"

#include <algorithm>
#include <cctype>
#include <optional>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/text/vocabulary.h"

namespace qalora::text {
namespace {

// One field of a protobuf message: its number and either a number or bytes.
struct Field {
  uint64_t number = 0;
  uint64_t value = 0;      // varint
  std::string_view bytes;  // length-delimited
  bool is_bytes = false;
};

// Reads the fields of one message in order; nothing is trusted beyond the bytes that are there.
class FieldReader {
 public:
  explicit FieldReader(std::string_view bytes) : bytes_(bytes) {}

  bool done() const { return at_ == bytes_.size(); }
  size_t position() const { return at_; }

  // Nothing when the bytes are not a field or end inside one.
  std::optional<Field> next() {
    const auto tag = varint();
    if (!tag || (*tag >> 3) == 0) return std::nullopt;
    Field field;
    field.number = *tag >> 3;
    switch (*tag & 7) {
      case 0: {
        const auto value = varint();
        if (!value) return std::nullopt;
        field.value = *value;
        return field;
      }
      case 1: return skip(8) ? std::optional(field) : std::nullopt;
      case 5: return skip(4) ? std::optional(field) : std::nullopt;
      case 2: {
        const auto size = varint();
        if (!size || *size > bytes_.size() - at_) return std::nullopt;
        field.bytes = bytes_.substr(at_, *size);
        field.is_bytes = true;
        at_ += *size;
        return field;
      }
      default: return std::nullopt;
    }
  }

 private:
  std::optional<uint64_t> varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && at_ < bytes_.size(); shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }
  bool skip(size_t count) {
    if (count > bytes_.size() - at_) return false;
    at_ += count;
    return true;
  }

  std::string_view bytes_;
  size_t at_ = 0;
};

void reject_other_kinds(const fs::path& path, std::string_view bytes) {
  QALORA_REQUIRE(!bytes.empty(), DataError, path.string(), ": the file is empty; expected a SentencePiece model");
  QALORA_REQUIRE(
      !looks_like_tiktoken(bytes), DataError, path.string(),
      ": this is a tiktoken vocabulary (base64 and rank in each line, as LLaMA 3 ships it); expected a SentencePiece "
      "model as LLaMA 1 and 2 have it");
  QALORA_REQUIRE(!bytes.starts_with("version https://git-lfs"), DataError, path.string(),
                 ": this is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'");
  QALORA_REQUIRE(bytes.front() != '{' && bytes.front() != '<', DataError, path.string(), ": starts with '",
                 bytes.front(), "', so it is text (JSON or a web page); expected a SentencePiece model");
}

// Type of one piece (its message's third field); 1, a normal piece, where it is left out.
uint64_t type_of(std::string_view piece) {
  uint64_t type = 1;
  FieldReader fields(piece);
  while (!fields.done()) {
    const auto field = fields.next();
    if (!field) break;  // the library says what is wrong with it
    if (field->number == 3) type = field->value;
  }
  return type;
}

// The library builds its tables from zero-terminated pieces and ends the process over an empty one.
void check_piece(const fs::path& path, std::string_view bytes, size_t position) {
  FieldReader fields(bytes);
  std::string_view piece;
  while (!fields.done()) {
    const auto field = fields.next();
    QALORA_REQUIRE(field, DataError, path.string(), ": the piece at byte ", position,
                   " is damaged; fetch the file again");
    if (field->number == 1 && field->is_bytes) piece = field->bytes;
  }
  QALORA_REQUIRE(!piece.empty() && piece.find('\0') == std::string_view::npos, DataError, path.string(),
                 ": the piece at byte ", position, piece.empty() ? " is empty" : " has a zero byte in it",
                 "; the file is damaged, fetch it again");
}

}  // namespace

bool looks_like_tiktoken(std::string_view bytes) {
  const auto line = bytes.substr(0, bytes.find('\n'));
  const auto blank = line.find(' ');
  if (blank == std::string_view::npos || blank == 0 || blank + 1 == line.size() || line.size() > 400) return false;
  const auto is_base64 = [](unsigned char c) { return std::isalnum(c) || c == '+' || c == '/' || c == '='; };
  const auto is_digit = [](unsigned char c) { return std::isdigit(c) || c == '\r'; };
  return std::all_of(line.begin(), line.begin() + blank, is_base64) &&
         std::all_of(line.begin() + blank + 1, line.end(), is_digit);
}

SentencePieceFile inspect_sentencepiece(const fs::path& path, std::string_view bytes) {
  reject_other_kinds(path, bytes);
  SentencePieceFile result;
  uint64_t algorithm = 1, collapses_blanks = 1, blank_at_end = 0;  // the format's defaults; algorithm 2 is BPE
  bool has_rules = false;                                          // character replacements, which may span several
  FieldReader reader(bytes);
  while (!reader.done()) {
    const size_t start = reader.position();
    const auto field = reader.next();
    QALORA_REQUIRE(field, DataError, path.string(),
                   ": not a SentencePiece model, or only a part of one: the field at byte ", start, " of ",
                   bytes.size(), " is damaged after ", result.pieces, " pieces; fetch the file again");
    const bool trainer = field->number == 2, normalizer = field->number == 3;
    if (field->number == 1 && field->is_bytes) {
      check_piece(path, field->bytes, start);
      if (type_of(field->bytes) == static_cast<uint64_t>(PieceType::kUserDefined))
        result.user_defined.insert(result.pieces);
      ++result.pieces;
    }
    if ((!trainer && !normalizer) || !field->is_bytes) continue;
    FieldReader settings(field->bytes);
    while (!settings.done()) {
      const auto setting = settings.next();
      QALORA_REQUIRE(setting, DataError, path.string(), ": the settings at byte ", start,
                     " are damaged; fetch the file again");
      if (normalizer && setting->number == 2) has_rules = !setting->bytes.empty();
      if (normalizer && setting->number == 3) result.adds_dummy_prefix = setting->value != 0;
      if (normalizer && setting->number == 4) collapses_blanks = setting->value;
      if (trainer && setting->number == 3) algorithm = setting->value;
      if (trainer && setting->number == 24) blank_at_end = setting->value;
      if (trainer && setting->number == 44) result.unknown = std::string(setting->bytes);
    }
  }
  result.context_free = algorithm == 2 && collapses_blanks == 0 && blank_at_end == 0 && !has_rules;
  QALORA_REQUIRE(result.pieces > 0, DataError, path.string(), ": holds no pieces; expected a SentencePiece model");
  return result;
}

std::string without_dummy_prefix(std::string_view bytes) {
  constexpr char kOverride[] = {0x1a, 0x02, 0x18, 0x00};  // normalizer_spec { add_dummy_prefix: false }
  return std::string(bytes) + std::string(kOverride, sizeof kOverride);
}

}  // namespace qalora::text
