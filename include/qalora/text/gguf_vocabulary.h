// A GGUF file's tokenizer, to and from what tokenizers are made of.
#pragma once

#include "qalora/io/gguf_file.h"
#include "qalora/io/gguf_writer.h"
#include "qalora/text/vocabulary.h"

namespace qalora::text {

// The file names a tokenizer at all.
bool has_gguf_vocabulary(const io::GgufContents& file);
// DataError for lists of different lengths, tokens that are there twice, byte tokens that are no byte, and kinds that
// are not read.
Vocabulary read_gguf_vocabulary(const io::GgufContents& file);

// Of a model in a GGUF file (io::gguf_file_of): its tokenizer as a folder's files, for what is made from the model.
// Nothing for other models, where there is no tokenizer, where a tokenizer's own files lie beside it, and, with a
// warning, where it cannot be read.
void save_gguf_tokenizer(const fs::path& model, const fs::path& folder);

// Adds the tokenizer's entries. rows: of the embedding, for which the engine wants as many tokens; what the vocabulary
// lacks is filled with unused tokens "[PAD7]". DataError, beginning with `name`, where the format or the engine cannot
// hold the vocabulary.
void add_gguf_vocabulary(const Vocabulary& vocabulary, int64_t rows, const std::string& name,
                         io::GgufMetadata& metadata);
// For a model that lies there without a tokenizer: <unk>, <s>, </s>, the bytes as far as there is room, unused tokens.
// The engine then takes and gives ids.
Vocabulary placeholder_vocabulary(int64_t rows);

}  // namespace qalora::text
