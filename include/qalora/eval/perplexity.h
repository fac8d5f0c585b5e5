// Perplexity of a text, and the blocks of tokens that it and `compare` run on.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/model/llama.h"
#include "qalora/text/tokenizer.h"

namespace qalora::eval {

struct TokenBlocks {
  std::vector<std::vector<int64_t>> blocks;  // two or more tokens each, at most block_tokens
  int64_t block_tokens = 0;
  int64_t documents = 0;
  int64_t partial_blocks = 0;  // shorter than block_tokens: the end of a document
  int64_t dropped_tokens = 0;  // a last block of one token predicts nothing
};

// Plain text is one document; a file that ends in .jsonl or .json holds one a line, under "text". Each document is
// encoded once, with one BOS in front where the tokenizer adds it, and cut into blocks that are scored apart (the GPTQ
// papers' way). Differs from theirs: the last, shorter block is scored too, because small texts have no other. limit:
// blocks; 0: all.
TokenBlocks read_blocks(const fs::path& path, const text::Tokenizer& tokenizer, int64_t block_tokens, int64_t limit);
// The block length: `asked`, else the smaller of 2048 and the model's context. UserError when it does not fit the
// model.
int64_t block_length(int64_t asked, const model::LlamaConfig& config);
// One list of ids or a list of lists of one length, as they are. DataError with row and position of what is not an id.
// limit: rows; 0: all.
TokenBlocks read_token_ids(const fs::path& path, const model::LlamaConfig& config, int64_t limit = 0);

struct PerplexityResult {
  int64_t tokens = 0;  // predicted: one less than the block's for each block
  double nll = 0;      // mean over them, nats
  int64_t blocks = 0;
  double seconds = 0;
};

// logits: null, or [blocks, positions, vocab] f32 on the CPU to fill (all blocks of one length).
PerplexityResult run_perplexity(model::Llama& model, const TokenBlocks& blocks, int64_t batch_tokens,
                                at::Tensor* logits = nullptr);

// Runs, calls report(result), then writes `logits` [rows, positions, vocab] f32: a failed write does not lose the
// result. MemoryError or IoError before the run when there is no room for the logits.
PerplexityResult save_logits(model::Llama& model, const TokenBlocks& rows, int64_t batch_tokens, const fs::path& path,
                             const std::function<void(const PerplexityResult&)>& report = {});

nlohmann::json to_json(const PerplexityResult& result, const TokenBlocks& blocks);

}  // namespace qalora::eval
