// A vocabulary as the files of a Hugging Face folder.
#pragma once

#include "qalora/core/file.h"
#include "qalora/text/vocabulary.h"

namespace qalora::text {

// Writes tokenizer.model (SentencePiece) or tokenizer.json (byte-level BPE), tokenizer_config.json and, where further
// ids end a text, generation_config.json. Tokenizer(folder) then gives the ids that Tokenizer(vocabulary, ..) gives.
// DataError for a vocabulary that these files cannot hold.
void save_tokenizer(const Vocabulary& vocabulary, const fs::path& folder);

}  // namespace qalora::text
