#include "tokenizer_rules.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/io/json_fault.h"

namespace qalora::text {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTokenId = 1'000'000;  // far above any vocabulary; keeps a damaged id from becoming a huge table

json read_object(const fs::path& path) {
  const std::string text = read_text_file(path);
  try {
    json object = json::parse(text);
    QALORA_REQUIRE(object.is_object(), DataError, path.string(), ": expected a JSON object, got ", object.type_name());
    return object;
  } catch (const json::parse_error& error) {
    throw DataError(message(path.string(), ": ", io::json_fault(text, error.byte)));
  } catch (const json::exception& error) {
    throw DataError(message(path.string(), ": not valid JSON: ", error.what()));
  }
}

void read_flag(const fs::path& path, const json& object, const char* key, bool& flag) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  QALORA_REQUIRE(found->is_boolean(), DataError, path.string(), ": '", key, "' is ", found->type_name(),
                 "; expected true or false");
  flag = found->get<bool>();
}

// A token is written as "</s>" or as {"content": "</s>", ...}; null says nothing.
std::optional<std::string> token_text(const fs::path& path, const json& value, const std::string& key) {
  if (value.is_null()) return std::nullopt;
  const json* text = &value;
  if (value.is_object()) {
    const auto found = value.find("content");
    if (found != value.end()) text = &*found;
  }
  QALORA_REQUIRE(text->is_string() && !text->get_ref<const std::string&>().empty(), DataError, path.string(), ": '",
                 key, "' is not a token; expected a string or an object with 'content'");
  return text->get<std::string>();
}

int64_t token_id(const fs::path& path, const json& value, const std::string& key) {
  const bool fits = value.is_number_integer() && value >= 0 && value <= kMaxTokenId;
  QALORA_REQUIRE(fits, DataError, path.string(), ": ", key, " has the id ",
                 value.dump(-1, ' ', false, json::error_handler_t::replace), "; expected a whole number from 0 to ",
                 kMaxTokenId);
  return value.get<int64_t>();
}

void add_token(TokenizerRules& rules, AddedToken token) {
  const auto same = std::find_if(rules.added.begin(), rules.added.end(),
                                 [&](const AddedToken& other) { return other.content == token.content; });
  if (same == rules.added.end()) {
    rules.added.push_back(std::move(token));
    return;
  }
  if (same->id < 0) same->id = token.id;
  same->special |= token.special;
}

void read_named_tokens(const fs::path& path, const json& object, TokenizerRules& rules) {
  const std::pair<const char*, std::optional<std::string>*> named[] = {{"bos_token", &rules.bos},
                                                                       {"eos_token", &rules.eos}};
  for (const auto& [key, target] : named) {
    if (!object.contains(key) || *target) continue;
    *target = token_text(path, object[key], key);
  }
  if (object.contains("pad_token")) {
    if (const auto text = token_text(path, object["pad_token"], "pad_token")) {
      add_token(rules, {.content = *text, .special = true});
      if (!rules.padding) rules.padding = text;
    }
  }
  const auto extra = object.find("additional_special_tokens");
  if (extra == object.end() || !extra->is_array()) return;
  for (const json& value : *extra) {
    if (const auto text = token_text(path, value, "additional_special_tokens"))
      add_token(rules, {.content = *text, .special = true});
  }
}

void read_decoder_tokens(const fs::path& path, const json& table, TokenizerRules& rules) {
  QALORA_REQUIRE(table.is_object(), DataError, path.string(), ": 'added_tokens_decoder' is ", table.type_name(),
                 "; expected an object");
  for (const auto& [key, value] : table.items()) {
    int64_t id = -1;
    const auto [end, code] = std::from_chars(key.data(), key.data() + key.size(), id);
    QALORA_REQUIRE(
        code == std::errc() && end == key.data() + key.size() && id >= 0 && id <= kMaxTokenId && value.is_object(),
        DataError, path.string(), ": 'added_tokens_decoder' has the entry '", key,
        "'; expected a token id and an object");
    AddedToken token;
    const auto text = token_text(path, value, key);
    QALORA_REQUIRE(text, DataError, path.string(), ": 'added_tokens_decoder' entry ", key, " has no content");
    token.content = *text;
    token.id = id;
    read_flag(path, value, "special", token.special);
    read_flag(path, value, "lstrip", token.strip_left);
    read_flag(path, value, "rstrip", token.strip_right);
    add_token(rules, std::move(token));
  }
}

// A string, or a list of named templates of which "default" counts.
std::string chat_template(const fs::path& path, const json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  QALORA_REQUIRE(value.is_array(), DataError, path.string(), ": 'chat_template' is ", value.type_name(),
                 "; expected a string or a list");
  for (const json& entry : value) {
    if (!entry.is_object() || entry.value("name", json()) != "default") continue;
    const auto found = entry.find("template");
    if (found != entry.end() && found->is_string()) return found->get<std::string>();
  }
  return "";
}

void read_stop_ids(const fs::path& path, TokenizerRules& rules) {
  const json object = read_object(path);
  const auto found = object.find("eos_token_id");
  if (found == object.end() || found->is_null()) return;
  const json list = found->is_array() ? *found : json::array({*found});
  for (const json& value : list) rules.stop_ids.push_back(token_id(path, value, "'eos_token_id'"));
}

}  // namespace

void apply_tokenizer_config(const fs::path& path, const json& object, TokenizerRules& rules) {
  read_flag(path, object, "add_bos_token", rules.adds_bos);
  read_flag(path, object, "add_eos_token", rules.adds_eos);
  read_flag(path, object, "legacy", rules.legacy);
  read_flag(path, object, "add_prefix_space", rules.adds_prefix_space);
  if (object.contains("added_tokens_decoder")) read_decoder_tokens(path, object["added_tokens_decoder"], rules);
  read_named_tokens(path, object, rules);
  if (object.contains("chat_template")) rules.chat_template = chat_template(path, object["chat_template"]);
}

TokenizerRules read_tokenizer_rules(const fs::path& folder, TokenizerRules rules) {
  const auto when_there = [&](const char* name, auto&& read) {
    std::error_code unreadable;
    if (fs::exists(folder / name, unreadable)) read(folder / name);
  };
  when_there("tokenizer_config.json",
             [&](const fs::path& path) { apply_tokenizer_config(path, read_object(path), rules); });
  when_there("special_tokens_map.json",
             [&](const fs::path& path) { read_named_tokens(path, read_object(path), rules); });
  when_there("added_tokens.json", [&](const fs::path& path) {
    const json object = read_object(path);
    for (const auto& [content, id] : object.items()) {
      if (!content.empty()) add_token(rules, {.content = content, .id = token_id(path, id, "'" + content + "'")});
    }
  });
  when_there("generation_config.json", [&](const fs::path& path) { read_stop_ids(path, rules); });
  when_there("chat_template.jinja", [&](const fs::path& path) { rules.chat_template = read_text_file(path); });
  return rules;
}

}  // namespace qalora::text
