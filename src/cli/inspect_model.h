// What `inspect` says about folders and files of weights. Each function returns the command's JSON document.
#pragma once

#include <nlohmann/json.hpp>

#include "qalora/core/file.h"
#include "qalora/text/tokenizer.h"

namespace qalora::cli {

nlohmann::json inspect_checkpoint(const fs::path& folder);
nlohmann::json inspect_adapter(const fs::path& folder);  // folder as io::find_adapter returns it
nlohmann::json inspect_safetensors(const fs::path& file);
nlohmann::json inspect_torch(const fs::path& file);  // of torch.save

const char* tokenizer_kind(const text::Tokenizer& tokenizer);  // "SentencePiece"

}  // namespace qalora::cli
