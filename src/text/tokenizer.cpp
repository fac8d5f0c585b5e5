#include "qalora/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "qalora/core/error.h"
#include "qalora/io/model_files.h"
#include "qalora/text/gguf_vocabulary.h"
#include "sentencepiece_file.h"
#include "sentencepiece_model.h"
#include "tiktoken_file.h"
#include "tokenizer_json.h"
#include "tokenizer_rules.h"
#include "unicode.h"
#include "utf8.h"
#include "vocabulary_files.h"

namespace qalora::text {
namespace {

constexpr float kAddedScore = -1000;  // of a piece that no merge makes, as llama.cpp's converter has it

// A stretch of text between special tokens, or one special token.
struct Fragment {
  std::string_view text;
  int64_t id = -1;
};

bool is_there(const fs::path& path) {
  std::error_code unreadable;
  return fs::exists(path, unreadable);
}

}  // namespace

struct Tokenizer::Impl {
  struct Match {
    std::string content;
    int64_t id = -1;
    bool special = false, strip_left = false, strip_right = false;
  };
  // Special and added tokens by first byte, longest first.
  struct Matches {
    std::array<std::vector<Match>, 256> by_byte;

    void add(Match match);
    void sort();
    const Match* at(std::string_view text, bool parse_special) const;
    std::vector<Fragment> split(std::string_view text, bool parse_special) const;
  };

  fs::path folder, path;
  TokenizerRules rules;
  std::unique_ptr<TokenModel> model;
  std::vector<Token> entries;
  Matches matches, normalized_matches;  // of the text as it is, of the normalised one
  bool has_normalized = false;
  int64_t bos = -1, eos = -1;
  std::vector<int64_t> stops;
  std::string fingerprint;

  void load(const fs::path& where);
  void load(const Vocabulary& vocabulary, const fs::path& name);
  void finish(std::string_view bytes);  // of the model's file
  void read_pieces();
  void add_matches();
  int64_t find_token(const std::optional<std::string>& content, int64_t otherwise, const char* what) const;
  void digest(std::string_view bytes);

  // Calls fragment(Fragment) in order; its text lives as long as the call.
  template <typename F>
  void each_fragment(std::string_view text, bool parse_special, const F& fragment) const;
  const Token* entry(int64_t id) const { return id >= 0 && id < std::ssize(entries) ? &entries[id] : nullptr; }
  // The bytes of one id; `first`: no text stands before it, so its dummy prefix is dropped.
  std::string bytes_of(int64_t id, bool first, bool skip_special) const;
  std::string readable(std::string_view bytes) const;
};

void Tokenizer::Impl::load(const fs::path& where) {
  const bool files = is_there(where / "tokenizer.model") || is_there(where / "tokenizer.json");
  if (const fs::path gguf = files ? fs::path() : io::gguf_file_of(where); !gguf.empty()) {
    return load(read_gguf_vocabulary(io::GgufFile(gguf).contents()), where);
  }
  const bool alone = where.extension() == ".model" && kind_of(where) == fs::file_type::regular;
  folder = alone ? where.parent_path() : where;
  path = alone ? where : folder / "tokenizer.model";
  const fs::path json = folder / "tokenizer.json";
  const bool has_json = !alone && is_there(json);
  QALORA_REQUIRE(has_json || is_there(path), DataError, folder.string(),
                 ": has no tokenizer.model and no tokenizer.json; copy the tokenizer from the original checkpoint");
  std::string bytes = is_there(path) ? read_text_file(path) : "";
  const bool tiktoken = looks_like_tiktoken(bytes);
  TokenizerJson found;
  if (has_json && (bytes.empty() || tiktoken)) {  // ranks alone do not say how a model's special tokens are called
    path = json;
    bytes = read_text_file(path);
    found = read_tokenizer_json(path);
  } else if (tiktoken) {
    found = read_tiktoken(path, bytes);
  } else {
    found.model = make_sentencepiece_model(path, bytes);
  }
  model = std::move(found.model);
  const bool legacy = found.rules.legacy;
  rules = read_tokenizer_rules(folder, std::move(found.rules));
  if (path ==
      json) {  // it says itself where a prefix goes; what lies beside it speaks of the tokenizer that it was made from
    rules.legacy = legacy;
    rules.adds_prefix_space = true;
  }
  finish(bytes);
}

void Tokenizer::Impl::load(const Vocabulary& vocabulary, const fs::path& name) {
  folder = path = name;
  check_vocabulary(vocabulary, name.string());
  std::string bytes;
  if (vocabulary.kind == TokenizerKind::kSentencePiece) {
    bytes = sentencepiece_file_of(vocabulary);
    model = make_sentencepiece_model(name, bytes);
  } else {
    const nlohmann::json file = tokenizer_json_of(vocabulary);
    TokenizerJson found = read_tokenizer_json(file, name.string());
    model = std::move(found.model);
    rules = std::move(found.rules);
    bytes = file.dump();
  }
  apply_tokenizer_config(name, tokenizer_config_of(vocabulary), rules);
  rules.stop_ids = vocabulary.stops;
  finish(bytes);
}

void Tokenizer::Impl::finish(std::string_view bytes) {
  read_pieces();
  bos = find_token(rules.bos, model->bos(), "bos_token");
  eos = find_token(rules.eos, model->eos(), "eos_token");
  if (eos < 0 && model->kind() == TokenizerKind::kByteLevelBpe && !rules.stop_ids.empty()) eos = rules.stop_ids.front();
  add_matches();
  if (eos >= 0) stops.push_back(eos);
  for (const int64_t id : rules.stop_ids) {
    if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
  }
  digest(bytes);
}

void Tokenizer::Impl::digest(std::string_view bytes) {
  Sha256 digest;
  digest.update(bytes);
  digest.update(message("\nbos ", rules.adds_bos, bos, " eos ", rules.adds_eos, eos, " legacy ", rules.legacy,
                        rules.adds_prefix_space));
  for (const AddedToken& token : rules.added) {
    digest.update(message("\n", token.id, token.special, token.strip_left, token.strip_right, token.content.size(),
                          token.content));
  }
  for (const int64_t id : stops) digest.update(message("\nstop ", id));
  digest.update(message("\nchat template ", rules.chat_template));
  fingerprint = digest.hex();
}

void Tokenizer::Impl::read_pieces() {
  for (int64_t id = 0; id < model->size(); ++id) entries.push_back(model->token(id));
  for (const AddedToken& token : rules.added) {
    if (token.id < 0) continue;
    if (token.id >= std::ssize(entries)) entries.resize(token.id + 1);
    if (entries[token.id].kind == TokenKind::kUnknown) continue;
    entries[token.id] = {token.content, token.special ? TokenKind::kSpecial : TokenKind::kAdded};
  }
}

int64_t Tokenizer::Impl::find_token(const std::optional<std::string>& content, int64_t otherwise,
                                    const char* what) const {
  if (!content) return otherwise;
  for (const AddedToken& token : rules.added) {
    if (token.content == *content && token.id >= 0) return token.id;
  }
  const int64_t id = model->find(*content);
  QALORA_REQUIRE(id >= 0, DataError, folder.string(), ": ", what, " '", *content, "' is neither a piece of ",
                 path.filename().string(), " nor an added token; correct tokenizer_config.json");
  return id;
}

void Tokenizer::Impl::Matches::add(Match match) {
  if (match.id < 0 || match.content.empty()) return;
  auto& bucket = by_byte[static_cast<unsigned char>(match.content[0])];
  const auto same =
      std::find_if(bucket.begin(), bucket.end(), [&](const Match& other) { return other.content == match.content; });
  if (same == bucket.end()) bucket.push_back(std::move(match));
}

void Tokenizer::Impl::Matches::sort() {
  for (auto& bucket : by_byte) {
    std::sort(bucket.begin(), bucket.end(),
              [](const Match& a, const Match& b) { return a.content.size() > b.content.size(); });
  }
}

void Tokenizer::Impl::add_matches() {
  for (const AddedToken& token : rules.added) {
    // Named without an id: counts only where the model has a piece of that text.
    const int64_t id = token.id < 0 ? model->find(token.content) : token.id;
    const bool special = token.special || id == bos || id == eos;
    const bool normalized = token.normalized && model->normalizes();
    has_normalized |= normalized;
    (normalized ? normalized_matches : matches)
        .add({normalized ? model->normalized(token.content) : token.content, id, special, token.strip_left,
              token.strip_right});
  }
  const int64_t unknown = model->kind() == TokenizerKind::kSentencePiece ? model->unknown() : -1;
  for (const int64_t id : {bos, eos, unknown}) {
    if (entry(id) == nullptr) continue;
    const std::string own = id < model->size() ? model->piece(id) : "";
    matches.add({.content = own.empty() ? entries[id].text : own, .id = id, .special = true});
  }
  matches.sort();
  normalized_matches.sort();
}

const Tokenizer::Impl::Match* Tokenizer::Impl::Matches::at(std::string_view text, bool parse_special) const {
  for (const Match& match : by_byte[static_cast<unsigned char>(text[0])]) {
    if ((parse_special || !match.special) && text.starts_with(match.content)) return &match;
  }
  return nullptr;
}

std::vector<Fragment> Tokenizer::Impl::Matches::split(std::string_view text, bool parse_special) const {
  std::vector<Fragment> fragments;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Match* match = this->at(text.substr(at), parse_special);
    if (match == nullptr) {
      ++at;
      continue;
    }
    std::string_view before = text.substr(begin, at - begin);
    for (size_t blank; match->strip_left && (blank = white_space_at_back(before)) > 0;) before.remove_suffix(blank);
    if (!before.empty()) fragments.push_back({before});
    fragments.push_back({match->content, match->id});
    at += match->content.size();
    for (size_t blank; match->strip_right && (blank = white_space_at_front(text.substr(at))) > 0;) at += blank;
    begin = at;
  }
  if (begin < text.size()) fragments.push_back({text.substr(begin)});
  return fragments;
}

template <typename F>
void Tokenizer::Impl::each_fragment(std::string_view text, bool parse_special, const F& fragment) const {
  for (const Fragment& part : matches.split(text, parse_special)) {
    if (part.id >= 0 || !model->normalizes()) {
      fragment(part);
      continue;
    }
    const std::string normalized = model->normalized(part.text);
    if (!has_normalized) {
      fragment(Fragment{normalized});
      continue;
    }
    for (const Fragment& inner : normalized_matches.split(normalized, parse_special)) fragment(inner);
  }
}

std::string Tokenizer::Impl::bytes_of(int64_t id, bool first, bool skip_special) const {
  const Token* found = entry(id);
  if (found == nullptr) return std::string(kReplacement);
  switch (found->kind) {
    case TokenKind::kSpecial: return skip_special ? "" : found->text;
    case TokenKind::kUnknown: return skip_special ? model->unknown_text() : found->text;
    case TokenKind::kGap: return std::string(kReplacement);
    case TokenKind::kText:
      return first && model->prefix_is_dropped() && found->text.starts_with(' ') ? found->text.substr(1) : found->text;
    default: return found->text;
  }
}

// Broken characters as each kind's own library shows them.
std::string Tokenizer::Impl::readable(std::string_view bytes) const {
  return model->kind() == TokenizerKind::kByteLevelBpe ? replace_broken_characters(bytes) : replace_invalid_utf8(bytes);
}

Tokenizer::Tokenizer(const fs::path& folder) : impl_(std::make_unique<Impl>()) { impl_->load(folder); }
Tokenizer::Tokenizer(const Vocabulary& vocabulary, const fs::path& name) : impl_(std::make_unique<Impl>()) {
  impl_->load(vocabulary, name);
}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

const fs::path& Tokenizer::folder() const { return impl_->folder; }
bool Tokenizer::exists(const fs::path& folder) {
  if (is_there(folder / "tokenizer.model") || is_there(folder / "tokenizer.json")) return true;
  const fs::path gguf = io::gguf_file_of(folder);
  return !gguf.empty() && has_gguf_vocabulary(io::GgufFile(gguf).contents());
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<int64_t> ids;
  bool at_start = true;
  impl_->each_fragment(text, options.parse_special, [&](const Fragment& fragment) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      // Hugging Face's rule: with `legacy` every stretch of text is encoded as if it stood alone, without it only the
      // first.
      const bool prefix = legacy() || (at_start && impl_->rules.adds_prefix_space);
      impl_->model->append(fragment.text, prefix, ids);
    }
    at_start = false;
  });
  const bool has_bos = options.parse_special && !ids.empty() && ids.front() == bos_id();
  if (options.add_bos && bos_id() >= 0 && !has_bos) ids.insert(ids.begin(), bos_id());
  if (options.add_eos && eos_id() >= 0) ids.push_back(eos_id());
  return ids;
}

std::vector<int64_t> Tokenizer::encode_continuation(std::string_view text) const {
  std::vector<int64_t> ids;
  bool at_start = true;
  impl_->each_fragment(text, /*parse_special=*/false, [&](const Fragment& fragment) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      impl_->model->append(fragment.text, legacy() && !at_start, ids);
    }
    at_start = false;
  });
  return ids;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special) const {
  std::string bytes;
  bool first = true;
  for (const int64_t id : ids) {
    bytes += impl_->bytes_of(id, first, skip_special);
    const Token* entry = impl_->entry(id);
    first = first && entry != nullptr && entry->kind == TokenKind::kSpecial;
  }
  return impl_->readable(bytes);
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
  return impl_->readable(std::string_view(bytes).substr(0, bytes.size() - incomplete_tail(bytes)));
}

std::string Tokenizer::piece(int64_t id) const {
  if (impl_->entry(id) == nullptr) return "";
  const std::string own = id < impl_->model->size() ? impl_->model->piece(id) : "";
  return own.empty() ? impl_->entries[id].text : own;
}

int64_t Tokenizer::special_id(std::string_view content) const {
  if (content.empty()) return -1;
  for (const Impl::Matches* matches : {&impl_->matches, &impl_->normalized_matches}) {
    for (const Impl::Match& match : matches->by_byte[static_cast<unsigned char>(content[0])]) {
      if (match.content == content) return match.id;
    }
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
TokenizerKind Tokenizer::kind() const { return impl_->model->kind(); }

Vocabulary Tokenizer::vocabulary() const {
  Vocabulary result = impl_->model->vocabulary();
  result.pieces.resize(vocab_size(), {.text = "", .score = kAddedScore, .type = PieceType::kUnused});
  for (const AddedToken& token : impl_->rules.added) {
    if (token.id < 0) continue;
    Piece& piece = result.pieces[token.id];
    if (piece.type == PieceType::kUnknown || (piece.type != PieceType::kNormal && piece.text == token.content))
      continue;
    piece.text = token.content;
    piece.type = token.special ? PieceType::kControl : PieceType::kUserDefined;
  }
  for (size_t id = 0; id < result.pieces.size(); ++id) {
    if (result.pieces[id].text.empty()) result.pieces[id] = {message("[PAD", id, "]"), kAddedScore, PieceType::kUnused};
  }
  result.bos = bos_id();
  result.eos = eos_id();
  if (impl_->rules.padding) result.padding = special_id(*impl_->rules.padding);
  for (const int64_t id : stop_ids()) {
    if (id != eos_id()) result.stops.push_back(id);
  }
  result.add_bos = adds_bos();
  result.add_eos = adds_eos();
  result.legacy = legacy();
  if (!legacy() && !impl_->rules.adds_prefix_space) result.add_space_prefix = false;
  result.chat_template = chat_template();
  return result;
}

}  // namespace qalora::text
