// The rules that lie beside a tokenizer's model in a Hugging Face folder.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::text {

struct AddedToken {
  std::string content;
  int64_t id = -1;  // -1: named in special_tokens_map.json only, the id is the piece's
  bool special = false;
  bool strip_left = false, strip_right = false;  // blanks beside it in the text vanish
  bool normalized = false;                       // it is looked for in the normalised text (tokenizer.json)
};

struct TokenizerRules {
  bool adds_bos = true;
  bool adds_eos = false;
  bool legacy = true;             // text behind a special token gets a dummy prefix again
  bool adds_prefix_space = true;  // only looked at without legacy
  std::optional<std::string> bos, eos, padding;
  std::vector<AddedToken> added;
  std::vector<int64_t> stop_ids;  // of generation_config.json
  std::string chat_template;
};

// Reads tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json and
// chat_template.jinja, each when it is there. DataError names the file and the key for a wrong type. rules: what the
// model's own file says.
TokenizerRules read_tokenizer_rules(const fs::path& folder, TokenizerRules rules = {});
// The same from the contents of a tokenizer_config.json; `path` for messages.
void apply_tokenizer_config(const fs::path& path, const nlohmann::json& config, TokenizerRules& rules);

}  // namespace qalora::text
