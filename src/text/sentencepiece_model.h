// SentencePiece's library behind the interface of a token model.
#pragma once

#include <memory>

#include "qalora/core/file.h"
#include "token_model.h"

namespace qalora::text {

// bytes: a tokenizer.model. path: for messages. DataError when it is none.
std::unique_ptr<TokenModel> make_sentencepiece_model(const fs::path& path, std::string_view bytes);

}  // namespace qalora::text
