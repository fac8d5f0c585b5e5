// A vocabulary in the formats of Hugging Face's folders.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "qalora/text/vocabulary.h"

namespace qalora::text {

// DataError, beginning with `name`, for a vocabulary that no such file can hold.
void check_vocabulary(const Vocabulary& vocabulary, const std::string& name);
std::string sentencepiece_file_of(const Vocabulary& vocabulary);   // tokenizer.model
nlohmann::json tokenizer_json_of(const Vocabulary& vocabulary);    // tokenizer.json, byte-level BPE
nlohmann::json tokenizer_config_of(const Vocabulary& vocabulary);  // tokenizer_config.json

}  // namespace qalora::text
