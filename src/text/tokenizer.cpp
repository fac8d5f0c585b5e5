#include "qalora/text/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <optional>

#include "blanks.h"
#include "qalora/core/error.h"
#include "sentencepiece_file.h"
#include "tokenizer_rules.h"
#include "utf8.h"
#include "word_encoder.h"

namespace qalora::text {
namespace {

enum class PieceKind : uint8_t { kText, kByte, kUnknown, kSpecial, kAdded, kGap };

// A stretch of text between special tokens, or one special token.
struct Fragment {
  std::string_view text;
  int64_t id = -1;
};

std::string with_blanks(std::string_view piece) {
  std::string text;
  for (size_t mark = piece.find(kBlankMark); mark != std::string_view::npos; mark = piece.find(kBlankMark)) {
    text += piece.substr(0, mark);
    text += ' ';
    piece.remove_prefix(mark + kBlankMark.size());
  }
  return text += piece;
}

bool is_there(const fs::path& path) {
  std::error_code unreadable;
  return fs::exists(path, unreadable);
}

}  // namespace

struct Tokenizer::Impl {
  struct Entry {
    std::string text;  // what it decodes to: blanks as blanks, a byte piece as its byte
    PieceKind kind = PieceKind::kGap;
  };
  struct Match {
    std::string content;
    int64_t id = -1;
    bool special = false, strip_left = false, strip_right = false;
  };

  fs::path folder, path;
  TokenizerRules rules;
  SentencePieceFile file;
  sentencepiece::SentencePieceProcessor model;  // told to add no dummy prefix; we put the blank in front ourselves
  std::optional<WordEncoder> encoder;
  // As the file has it. Where blanks collapse, a blank of ours in front would be lost, so the library must add its own.
  std::optional<sentencepiece::SentencePieceProcessor> unchanged;
  std::vector<Entry> entries;
  std::array<std::vector<Match>, 256> matches;  // special and added tokens by first byte, longest first
  int64_t bos = -1, eos = -1;
  std::vector<int64_t> stops;
  std::string fingerprint;

  void load(const fs::path& where);
  void read_pieces();
  void add_matches();
  void add_match(Match match);
  int64_t find_token(const std::optional<std::string>& content, int64_t otherwise, const char* what) const;

  std::vector<Fragment> split(std::string_view text, bool parse_special) const;
  const Match* match_at(std::string_view text, size_t at, bool parse_special) const;
  // The ids of one stretch of text; `prefix`: it begins a text, so the model's dummy prefix belongs in front.
  void append(std::string_view text, bool prefix, std::vector<int64_t>& ids) const;
  const Entry* entry(int64_t id) const { return id >= 0 && id < std::ssize(entries) ? &entries[id] : nullptr; }
  // The bytes of one id; `first`: no text stands before it, so its dummy prefix is dropped.
  std::string bytes_of(int64_t id, bool first, bool skip_special) const;
};

void Tokenizer::Impl::load(const fs::path& where) {
  folder = where;
  path = folder / "tokenizer.model";
  if (!is_there(path)) {
    const bool bpe = is_there(folder / "tokenizer.json");
    throw DataError(
        message(folder.string(), ": has no tokenizer.model", bpe ? ", only a tokenizer.json" : "",
                "; expected LLaMA's SentencePiece model (byte-level BPE vocabularies are not supported). Copy it from "
                "the original checkpoint"));
  }
  const std::string bytes = read_text_file(path);
  file = inspect_sentencepiece(path, bytes);
  const auto status = model.LoadFromSerializedProto(without_dummy_prefix(bytes));
  QALORA_REQUIRE(status.ok(), DataError, path.string(), ": the SentencePiece library refuses it: ", status.ToString());
  encoder.emplace(model, file.context_free);
  if (!encoder->by_words()) {
    unchanged.emplace();
    const auto again = unchanged->LoadFromSerializedProto(bytes);
    QALORA_REQUIRE(again.ok(), DataError, path.string(), ": the SentencePiece library refuses it: ", again.ToString());
  }
  rules = read_tokenizer_rules(folder);
  read_pieces();
  bos = find_token(rules.bos, model.bos_id(), "bos_token");
  eos = find_token(rules.eos, model.eos_id(), "eos_token");
  add_matches();
  if (eos >= 0) stops.push_back(eos);
  for (const int64_t id : rules.stop_ids) {
    if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
  }

  Sha256 digest;
  digest.update(bytes);
  digest.update(
      message("\nbos ", rules.adds_bos, bos, " eos ", rules.adds_eos, eos, " legacy ", rules.legacy, rules.adds_prefix_space));
  for (const AddedToken& token : rules.added) {
    digest.update(
        message("\n", token.id, token.special, token.strip_left, token.strip_right, token.content.size(), token.content));
  }
  for (const int64_t id : stops) digest.update(message("\nstop ", id));
  digest.update(message("\nchat template ", rules.chat_template));
  fingerprint = digest.hex();
}

void Tokenizer::Impl::read_pieces() {
  entries.resize(model.GetPieceSize());
  for (int id = 0; id < std::ssize(entries); ++id) {
    Entry& entry = entries[id];
    entry.text = model.IdToPiece(id);
    if (model.IsByte(id)) {
      entry.kind = PieceKind::kByte;  // "<0x0A>"
      entry.text = std::string(1, static_cast<char>(std::stoi(entry.text.substr(3, 2), nullptr, 16)));
    } else if (model.IsControl(id)) {
      entry.kind = PieceKind::kSpecial;
    } else if (model.IsUnknown(id)) {
      entry.kind = PieceKind::kUnknown;
    } else {
      entry.kind = PieceKind::kText;
      entry.text = with_blanks(entry.text);
    }
  }
  for (const AddedToken& token : rules.added) {
    if (token.id < 0) continue;
    if (token.id >= std::ssize(entries)) entries.resize(token.id + 1);
    if (entries[token.id].kind == PieceKind::kUnknown) continue;
    entries[token.id] = {token.content, token.special ? PieceKind::kSpecial : PieceKind::kAdded};
  }
}

int64_t Tokenizer::Impl::find_token(const std::optional<std::string>& content, int64_t otherwise, const char* what) const {
  if (!content) return otherwise;
  for (const AddedToken& token : rules.added) {
    if (token.content == *content && token.id >= 0) return token.id;
  }
  const int id = model.PieceToId(*content);
  QALORA_REQUIRE(id != model.unk_id() || *content == model.IdToPiece(id), DataError, path.parent_path().string(), ": ", what,
                 " '", *content, "' is neither a piece of tokenizer.model nor an added token; correct tokenizer_config.json");
  return id;
}

void Tokenizer::Impl::add_match(Match match) {
  if (match.id < 0 || match.content.empty()) return;
  auto& bucket = matches[static_cast<unsigned char>(match.content[0])];
  const auto same =
      std::find_if(bucket.begin(), bucket.end(), [&](const Match& other) { return other.content == match.content; });
  if (same == bucket.end()) bucket.push_back(std::move(match));
}

void Tokenizer::Impl::add_matches() {
  for (const AddedToken& token : rules.added) {
    int64_t id = token.id;
    if (id < 0) {
      // Named without an id: counts only where the model has a piece of that text.
      id = model.PieceToId(token.content);
      if (model.IdToPiece(static_cast<int>(id)) != token.content) continue;
    }
    const bool special = token.special || id == bos || id == eos;
    add_match({token.content, id, special, token.strip_left, token.strip_right});
  }
  for (const int64_t id : {bos, eos, static_cast<int64_t>(model.unk_id())}) {
    if (id >= 0)
      add_match({.content = id < model.GetPieceSize() ? model.IdToPiece(static_cast<int>(id)) : entries[id].text,
                 .id = id,
                 .special = true});
  }
  for (auto& bucket : matches) {
    std::sort(bucket.begin(), bucket.end(), [](const Match& a, const Match& b) { return a.content.size() > b.content.size(); });
  }
}

const Tokenizer::Impl::Match* Tokenizer::Impl::match_at(std::string_view text, size_t at, bool parse_special) const {
  for (const Match& match : matches[static_cast<unsigned char>(text[at])]) {
    if ((parse_special || !match.special) && text.substr(at).starts_with(match.content)) return &match;
  }
  return nullptr;
}

std::vector<Fragment> Tokenizer::Impl::split(std::string_view text, bool parse_special) const {
  std::vector<Fragment> fragments;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Match* match = match_at(text, at, parse_special);
    if (match == nullptr) {
      ++at;
      continue;
    }
    size_t end = at;
    while (match->strip_left && end > begin && is_blank(text[end - 1])) --end;
    if (end > begin) fragments.push_back({text.substr(begin, end - begin)});
    fragments.push_back({match->content, match->id});
    at += match->content.size();
    while (match->strip_right && at < text.size() && is_blank(text[at])) ++at;
    begin = at;
  }
  if (begin < text.size()) fragments.push_back({text.substr(begin)});
  return fragments;
}

void Tokenizer::Impl::append(std::string_view text, bool prefix, std::vector<int64_t>& ids) const {
  std::string reason;
  if (prefix && unchanged) {
    std::vector<int> found;
    const auto status = unchanged->Encode(text, &found);
    if (!status.ok()) reason = status.ToString();
    ids.insert(ids.end(), found.begin(), found.end());
  } else if (prefix && file.adds_dummy_prefix) {
    reason = encoder->append(message(' ', text), ids);
  } else {
    reason = encoder->append(text, ids);
  }
  QALORA_REQUIRE(reason.empty(), DataError, path.string(), ": the SentencePiece library cannot encode the text: ", reason);
}

std::string Tokenizer::Impl::bytes_of(int64_t id, bool first, bool skip_special) const {
  const Entry* found = entry(id);
  if (found == nullptr) return std::string(kReplacement);
  switch (found->kind) {
    case PieceKind::kSpecial: return skip_special ? "" : found->text;
    case PieceKind::kUnknown: return skip_special ? file.unknown : found->text;
    case PieceKind::kGap: return std::string(kReplacement);
    case PieceKind::kText:
      return first && file.adds_dummy_prefix && found->text.starts_with(' ') ? found->text.substr(1) : found->text;
    default: return found->text;
  }
}

Tokenizer::Tokenizer(const fs::path& folder) : impl_(std::make_unique<Impl>()) { impl_->load(folder); }
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

const fs::path& Tokenizer::folder() const { return impl_->folder; }
bool Tokenizer::exists(const fs::path& folder) { return is_there(folder / "tokenizer.model"); }

std::vector<int64_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<int64_t> ids;
  const auto fragments = impl_->split(text, options.parse_special);
  const bool has_bos = !fragments.empty() && fragments.front().id >= 0 && fragments.front().id == bos_id();
  if (options.add_bos && bos_id() >= 0 && !has_bos) ids.push_back(bos_id());
  bool at_start = true;
  for (const Fragment& fragment : fragments) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      // Hugging Face's rule: with `legacy` every stretch of text is encoded as if it stood alone, without it only the first.
      const bool prefix = legacy() || (at_start && impl_->rules.adds_prefix_space);
      impl_->append(fragment.text, prefix, ids);
    }
    at_start = false;
  }
  if (options.add_eos && eos_id() >= 0) ids.push_back(eos_id());
  return ids;
}

std::vector<int64_t> Tokenizer::encode_continuation(std::string_view text) const {
  std::vector<int64_t> ids;
  for (const Fragment& fragment : impl_->split(text, /*parse_special=*/false)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      const bool behind_token = legacy() && fragment.text.data() != text.data();
      impl_->append(fragment.text, behind_token, ids);
    }
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special) const {
  std::string bytes;
  bool first = true;
  for (const int64_t id : ids) {
    bytes += impl_->bytes_of(id, first, skip_special);
    const Impl::Entry* entry = impl_->entry(id);
    first = first && entry != nullptr && entry->kind == PieceKind::kSpecial;
  }
  return replace_invalid_utf8(bytes);
}

std::string Tokenizer::decode_next(const std::vector<int64_t>& before, int64_t id) const {
  // Three bytes are enough to know whether a character is still open; special tokens have no bytes and are passed over.
  std::string tail;
  bool anything = false;
  for (auto it = before.rbegin(); it != before.rend() && tail.size() < 3; ++it) {
    const std::string bytes = impl_->bytes_of(*it, /*first=*/false, /*skip_special=*/true);
    anything |= !bytes.empty();
    tail.insert(0, bytes);
  }
  const std::string held = tail.substr(tail.size() - incomplete_tail(tail));
  const std::string bytes = held + impl_->bytes_of(id, !anything, true);
  return replace_invalid_utf8(std::string_view(bytes).substr(0, bytes.size() - incomplete_tail(bytes)));
}

std::string Tokenizer::piece(int64_t id) const {
  if (impl_->entry(id) == nullptr) return "";
  return id < impl_->model.GetPieceSize() ? impl_->model.IdToPiece(static_cast<int>(id)) : impl_->entries[id].text;
}

int64_t Tokenizer::special_id(std::string_view content) const {
  if (content.empty()) return -1;
  for (const Impl::Match& match : impl_->matches[static_cast<unsigned char>(content[0])]) {
    if (match.content == content) return match.id;
  }
  return -1;
}

int64_t Tokenizer::vocab_size() const { return std::ssize(impl_->entries); }
int64_t Tokenizer::bos_id() const { return impl_->bos; }
int64_t Tokenizer::eos_id() const { return impl_->eos; }
const std::vector<int64_t>& Tokenizer::stop_ids() const { return impl_->stops; }
bool Tokenizer::adds_bos() const { return impl_->rules.adds_bos; }
bool Tokenizer::adds_eos() const { return impl_->rules.adds_eos; }
bool Tokenizer::legacy() const { return impl_->rules.legacy; }
const std::string& Tokenizer::chat_template() const { return impl_->rules.chat_template; }
std::string Tokenizer::fingerprint() const { return impl_->fingerprint; }

}  // namespace qalora::text
