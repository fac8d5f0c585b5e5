// Meta's tokenizer.model of LLaMA 3: tiktoken's ranks, a base64 token and its rank in each line.
#pragma once

#include "tokenizer_json.h"

namespace qalora::text {

// bytes: looks_like_tiktoken (sentencepiece_file.h). The special tokens are not in the file; they are LLaMA 3's, behind
// the ranks.
TokenizerJson read_tiktoken(const fs::path& path, std::string_view bytes);

}  // namespace qalora::text
