#include "tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "blank_mark_model.h"
#include "byte_level_model.h"
#include "qalora/core/error.h"
#include "qalora/io/json_file.h"
#include "word_encoder.h"

namespace qalora::text {
namespace {

using nlohmann::json;

constexpr int64_t kSpareIds =
    100'000;  // how far ids may lie above the number of tokens: keeps a damaged id from becoming a huge table
constexpr const char* kNotExact = "; the tokenizer cannot be read exactly";

std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 120 ? text : text.substr(0, 117) + "...";
}

// One object of the file by its place in it ("model", "pre_tokenizer"), for messages.
class Part {
 public:
  Part(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    QALORA_REQUIRE(object.is_object(), DataError, where_, ": expected an object, got ", object.type_name());
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const json& at(const char* key) const {
    QALORA_REQUIRE(has(key), DataError, where_, ": '", key, "' is missing");
    return object_.at(key);
  }
  Part part(const char* key) const { return Part(at(key), where_ + ": " + key); }
  bool flag(const char* key, bool fallback = false) const {
    if (!has(key)) return fallback;
    QALORA_REQUIRE(at(key).is_boolean(), DataError, where_, ": '", key, "' is ", shown(at(key)),
                   ", expected true or false");
    return at(key).get<bool>();
  }
  const std::string& text(const char* key) const {
    QALORA_REQUIRE(at(key).is_string(), DataError, where_, ": '", key, "' is ", shown(at(key)), ", expected text");
    return at(key).get_ref<const std::string&>();
  }
  std::string text(const char* key, const char* fallback) const { return has(key) ? text(key) : fallback; }
  const json& list(const char* key) const {
    QALORA_REQUIRE(at(key).is_array(), DataError, where_, ": '", key, "' is ", at(key).type_name(),
                   ", expected a list");
    return at(key);
  }
  const std::string& where() const { return where_; }
  [[noreturn]] void refuse(const std::string& what) const { throw DataError(message(where_, ": ", what, kNotExact)); }

 private:
  const json& object_;
  std::string where_;
};

int64_t token_id(const json& value, int64_t limit, const std::string& what) {
  QALORA_REQUIRE(value.is_number_integer() && value >= 0 && value < limit, DataError, what, " has the id ",
                 shown(value), "; expected a whole number below ", limit);
  return value.get<int64_t>();
}

// The steps of one thing, or of a "Sequence" of them; sequences do not nest.
std::vector<Part> parts_of(const Part& part, const char* key) {
  if (part.text("type", "") != "Sequence") return {part};
  std::vector<Part> result;
  for (const json& entry : part.list(key)) {
    result.emplace_back(entry, part.where());
    if (result.back().text("type", "") == "Sequence") part.refuse("a Sequence inside a Sequence is not supported");
  }
  return result;
}

Normalization read_normalizer(const Part& root) {
  Normalization result = Normalization::kNone;
  if (!root.has("normalizer")) return result;
  const Part whole = root.part("normalizer");
  for (const Part& part : parts_of(whole, "normalizers")) {
    const std::string type = part.text("type", "");
    const Normalization before = result;
    for (const Normalization form :
         {Normalization::kNfc, Normalization::kNfd, Normalization::kNfkc, Normalization::kNfkd}) {
      if (type == normalization_name(form)) result = form;
    }
    if (result == before || before != Normalization::kNone) {
      part.refuse("the normalizer '" + type + "' is not supported (known: one of NFC, NFD, NFKC, NFKD)");
    }
  }
  return result;
}

SplitStep read_split(const Part& part) {
  const Part pattern = part.part("pattern");
  SplitStep step;
  step.pattern = pattern.has("Regex") ? pattern.text("Regex") : escaped_pattern(pattern.text("String"));
  const std::string behavior = part.text("behavior", "");
  const bool invert = part.flag("invert");
  if (behavior == "Isolated") {
    step.kind = SplitStep::Kind::kIsolate;
  } else if (behavior == "Removed") {
    step.kind = invert ? SplitStep::Kind::kExtract : SplitStep::Kind::kDrop;
  } else {
    part.refuse("the behavior '" + behavior + "' of a Split is not supported (known: Isolated, Removed)");
  }
  return step;
}

std::vector<SplitStep> read_steps(const Part& root) {
  QALORA_REQUIRE(root.has("pre_tokenizer"), DataError, root.where(),
                 ": has no pre_tokenizer; expected byte-level BPE (ByteLevel)", kNotExact);
  std::vector<SplitStep> steps;
  bool bytes = false;
  const Part whole = root.part("pre_tokenizer");
  for (const Part& part : parts_of(whole, "pretokenizers")) {
    const std::string type = part.text("type", "");
    if (bytes) part.refuse("a pre_tokenizer behind ByteLevel is not supported");
    if (type == "Split") {
      steps.push_back(read_split(part));
    } else if (type == "Digits") {
      steps.push_back({SplitStep::Kind::kIsolate, part.flag("individual_digits") ? "\\p{N}" : "\\p{N}+"});
    } else if (type == "ByteLevel") {
      bytes = true;
      if (part.flag("add_prefix_space", true)) steps.push_back({SplitStep::Kind::kPrefix, ""});
      if (part.flag("use_regex", true)) steps.push_back(named_steps("gpt-2").front());
    } else {
      part.refuse("the pre_tokenizer '" + type + "' is not supported (known: Split, Digits, ByteLevel)");
    }
  }
  if (!bytes) whole.refuse("no ByteLevel among its steps: this is no byte-level BPE");
  return steps;
}

void require_byte_decoder(const Part& root) {
  if (!root.has("decoder")) return;
  for (const Part& part : parts_of(root.part("decoder"), "decoders")) {
    const std::string type = part.text("type", "");
    if (type != "ByteLevel" && type != "Fuse")
      part.refuse("the decoder '" + type + "' does not belong to byte-level BPE");
  }
}

void read_added(const Part& root, int64_t limit, TokenizerRules& rules) {
  if (!root.has("added_tokens")) return;
  for (const json& entry : root.list("added_tokens")) {
    const Part part(entry, root.where() + ": added_tokens");
    AddedToken token;
    token.content = part.text("content");
    QALORA_REQUIRE(!token.content.empty(), DataError, part.where(), ": a token without text");
    token.id = token_id(part.at("id"), limit, part.where() + ": '" + token.content + "'");
    token.special = part.flag("special");
    token.strip_left = part.flag("lstrip");
    token.strip_right = part.flag("rstrip");
    token.normalized = part.flag("normalized", !token.special);
    if (part.flag("single_word")) {
      part.refuse("'" + token.content + "' counts only as a word of its own (single_word), which is not supported");
    }
    rules.added.push_back(std::move(token));
  }
}

// The special tokens around a text: those of a template's "single" form.
struct Ends {
  int64_t bos = -1, eos = -1;
};
void read_template(const Part& part, Ends& ends, TokenizerRules& rules, int64_t limit) {
  bool text_came = false;
  for (const json& entry : part.list("single")) {
    const Part step(entry, part.where() + ": single");
    if (step.has("Sequence")) {
      if (std::exchange(text_came, true)) part.refuse("the text stands twice in the template");
      continue;
    }
    const std::string name = step.part("SpecialToken").text("id");
    const Part token = part.part("special_tokens").part(name.c_str());
    const json& ids = token.list("ids");
    int64_t& place = text_came ? ends.eos : ends.bos;
    if (ids.size() != 1 || place >= 0)
      part.refuse("more than one special token in front of a text or behind it is not supported");
    place = token_id(ids[0], limit, token.where());
    (text_came ? rules.adds_eos : rules.adds_bos) = true;
  }
  if (!text_came) part.refuse("the text does not stand in the template");
}

Ends read_post_processor(const Part& root, TokenizerRules& rules, int64_t limit) {
  Ends ends;
  if (!root.has("post_processor")) return ends;
  for (const Part& part : parts_of(root.part("post_processor"), "processors")) {
    const std::string type = part.text("type", "");
    if (type == "TemplateProcessing") {
      read_template(part, ends, rules, limit);
    } else if (type != "ByteLevel") {  // which moves offsets only
      part.refuse("the post_processor '" + type + "' is not supported (known: ByteLevel, TemplateProcessing)");
    }
  }
  return ends;
}

// Pieces by id.
std::vector<std::string> read_vocabulary(const Part& model, int64_t limit) {
  const json& vocabulary = model.at("vocab");
  QALORA_REQUIRE(vocabulary.is_object() && !vocabulary.empty(), DataError, model.where(), ": 'vocab' is ",
                 vocabulary.type_name(), ", expected an object with pieces and their ids");
  std::vector<std::string> pieces;
  for (const auto& [piece, value] : vocabulary.items()) {
    const int64_t id = token_id(value, limit, model.where() + ": vocab: '" + piece + "'");
    QALORA_REQUIRE(!piece.empty(), DataError, model.where(), ": vocab: a piece without text");
    if (id >= std::ssize(pieces)) pieces.resize(id + 1);
    QALORA_REQUIRE(pieces[id].empty(), DataError, model.where(), ": vocab: '", pieces[id], "' and '", piece,
                   "' have the same id ", id);
    pieces[id] = piece;
  }
  return pieces;
}

// "a b", or a list of the two, as newer files have it (a piece may then hold a blank).
std::pair<std::string, std::string> read_merge(const json& entry, const std::string& where, size_t rank) {
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    return {entry[0].get<std::string>(), entry[1].get<std::string>()};
  }
  if (entry.is_string()) {
    const auto& text = entry.get_ref<const std::string&>();
    const size_t blank = text.find(' ');
    const bool two = blank != std::string::npos && text.find(' ', blank + 1) == std::string::npos;
    if (two) return {text.substr(0, blank), text.substr(blank + 1)};
  }
  throw DataError(
      message(where, ": merge ", rank, " is ", shown(entry), "; expected two pieces: \"a b\" or [\"a\", \"b\"]"));
}

std::vector<std::pair<std::string, std::string>> read_merges(const Part& model) {
  const json& list = model.list("merges");
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(list.size());
  for (const json& entry : list) merges.push_back(read_merge(entry, model.where(), merges.size()));
  return merges;
}

int64_t read_unknown(const Part& model, const std::vector<std::string>& pieces) {
  if (!model.has("unk_token")) return -1;
  const auto found = std::find(pieces.begin(), pieces.end(), model.text("unk_token"));
  QALORA_REQUIRE(found != pieces.end(), DataError, model.where(), ": unk_token '", model.text("unk_token"),
                 "' is no piece of the vocabulary");
  return found - pieces.begin();
}

void refuse_unsupported(const Part& model) {
  if (model.has("dropout") && model.at("dropout") != 0)
    model.refuse("dropout makes its ids random, which is not supported");
  if (!model.text("continuing_subword_prefix", "").empty()) model.refuse("continuing_subword_prefix is not supported");
  if (!model.text("end_of_word_suffix", "").empty()) model.refuse("end_of_word_suffix is not supported");
}

std::unique_ptr<TokenModel> read_byte_level(const Part& root, const Part& model, int64_t limit, const Ends& ends) {
  ByteLevelParts parts;
  parts.name = root.where();
  parts.normalization = read_normalizer(root);
  parts.steps = read_steps(root);
  require_byte_decoder(root);
  parts.ignore_merges = model.flag("ignore_merges");
  parts.pieces = read_vocabulary(model, limit);
  parts.merges = read_merges(model);
  parts.unknown = read_unknown(model, parts.pieces);
  parts.bos = ends.bos;
  parts.eos = ends.eos;
  return make_byte_level_model(std::move(parts));
}

// A normalizer that puts U+2581 in front and in place of blanks (older files), or the pre-tokenizer that does so (newer
// ones). The first acts on every stretch of text between special tokens, the second, with "first", at the beginning of
// the whole.
void read_blank_marks(const Part& root, BlankMarkParts& parts, TokenizerRules& rules) {
  parts.adds_prefix = false;
  bool replaces = false;
  if (root.has("normalizer")) {
    const Part whole = root.part("normalizer");
    for (const Part& part : parts_of(whole, "normalizers")) {
      const std::string type = part.text("type", "");
      if (type == "Prepend" && part.text("prepend") == kBlankMark && !replaces) {
        parts.adds_prefix = rules.legacy = true;
      } else if (type == "Replace" && part.part("pattern").text("String", "") == " " &&
                 part.text("content") == kBlankMark) {
        replaces = true;
      } else {
        part.refuse("the normalizer '" + type +
                    "' is not supported with byte_fallback (known: Prepend and Replace with U+2581)");
      }
    }
  }
  if (root.has("pre_tokenizer")) {
    const Part part = root.part("pre_tokenizer");
    const std::string scheme = part.text("prepend_scheme", part.flag("add_prefix_space", true) ? "always" : "never");
    const bool known =
        part.text("type", "") == "Metaspace" && part.text("replacement", "") == kBlankMark && !part.flag("split", true);
    if (!known || replaces)
      part.refuse("the pre_tokenizer is not supported with byte_fallback (known: Metaspace without split)");
    if (scheme != "first" && scheme != "always" && scheme != "never")
      part.refuse("prepend_scheme '" + scheme + "' is not known");
    replaces = parts.prefix_only_without = true;
    parts.adds_prefix = scheme != "never";
    rules.legacy = scheme == "always";
  }
  if (!replaces) root.refuse("byte_fallback without U+2581 for blanks is not supported");
}

std::unique_ptr<TokenModel> read_blank_mark(const Part& root, const Part& model, int64_t limit, const Ends& ends,
                                            TokenizerRules& rules) {
  BlankMarkParts parts;
  parts.name = root.where();
  read_blank_marks(root, parts, rules);
  if (model.flag("ignore_merges")) model.refuse("ignore_merges is not supported with byte_fallback");
  parts.pieces = read_vocabulary(model, limit);
  parts.merges = read_merges(model);
  parts.unknown = read_unknown(model, parts.pieces);
  // By SentencePiece's names, where the file does not say.
  const auto named = [&](const char* name) {
    const auto found = std::find(parts.pieces.begin(), parts.pieces.end(), name);
    return found == parts.pieces.end() ? -1 : found - parts.pieces.begin();
  };
  parts.bos = ends.bos >= 0 ? ends.bos : named("<s>");
  parts.eos = ends.eos >= 0 ? ends.eos : named("</s>");
  for (const AddedToken& token : rules.added) parts.added.push_back(token.id);
  return make_blank_mark_model(std::move(parts));
}

}  // namespace

TokenizerJson read_tokenizer_json(const fs::path& path) {
  return read_tokenizer_json(io::read_json_file(path), path.string());
}

TokenizerJson read_tokenizer_json(const json& file, const std::string& name) {
  const Part root(file, name);
  const Part model = root.part("model");
  const std::string type = model.text("type", model.has("merges") ? "BPE" : "");
  QALORA_REQUIRE(type == "BPE", DataError, model.where(), ": type '", type, "'; expected BPE");
  const size_t added = root.has("added_tokens") ? root.at("added_tokens").size() : 0;
  const int64_t limit = static_cast<int64_t>(model.at("vocab").size() + added) + kSpareIds;

  TokenizerJson result;
  result.rules.adds_bos = false;
  refuse_unsupported(model);
  read_added(root, limit, result.rules);
  const Ends ends = read_post_processor(root, result.rules, limit);
  result.model = model.flag("byte_fallback") ? read_blank_mark(root, model, limit, ends, result.rules)
                                             : read_byte_level(root, model, limit, ends);
  return result;
}

}  // namespace qalora::text
