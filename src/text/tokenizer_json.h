// The tokenizers library's own file, tokenizer.json.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "token_model.h"
#include "tokenizer_rules.h"

namespace qalora::text {

struct TokenizerJson {
  std::unique_ptr<TokenModel> model;
  TokenizerRules
      rules;  // added tokens, and whether begin and end of sequence are added; what lies beside the file may say more
};

// DataError for everything that would change ids and is not supported.
TokenizerJson read_tokenizer_json(const fs::path& path);
TokenizerJson read_tokenizer_json(const nlohmann::json& file, const std::string& name);  // name: begins messages

}  // namespace qalora::text
