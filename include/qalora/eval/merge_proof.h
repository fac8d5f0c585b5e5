// The proof that a merge lost nothing: base + adapter and the merged checkpoint, as written, on the same tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/io/adapter_file.h"
#include "qalora/model/config.h"

namespace qalora::eval {

struct ProofTokens {
  std::vector<std::vector<int64_t>> sequences;
  std::string source;  // "4 records of data.json", "built-in text", "pseudo-random ids"
};

// The first records of the training file when it is there and can be read, else a built-in paragraph; pseudo-random ids for a
// model without a tokenizer.
ProofTokens proof_tokens(const fs::path& model, const model::LlamaConfig& config, const std::string& training_data);
// Of a file that the person named: what is wrong with it is an error.
ProofTokens proof_tokens_of(const fs::path& model, const model::LlamaConfig& config, const std::string& data);

struct MergeProof {
  double max_logit_difference = 0;  // merged against base + adapter
  double tolerance = 0;
  double effect = 0;                // base + adapter against base: what the adapter does at all
  int64_t tokens = 0;
  // False for NaN, and where rounding moves nothing: logits that overflowed to a constant would agree with anything.
  bool verified() const { return tolerance > 0 && max_logit_difference <= tolerance; }
};

// Runs base, base + adapter and merged in fp32.
//
// The tolerance is measured, because how far one rounding travels depends on the model. In exact arithmetic the two models are
// one function. In fp32 they differ because (1) each merged offset was rounded once, by at most 2^-24 of itself, and (2) sums of
// different addends round differently. So base + adapter is run once more with every offset b of a merged module moved, up or
// down at random, by 2^-23 (|b| + |k B A|): at least twice what (1) can do, and it makes every sum behind it round anew, which
// is (2). The largest logit difference that this causes is the rounding's own size in this model on these tokens, and kMargin
// times that is the tolerance. It does not grow with the adapter, so a wrong sign, a wrong factor or a dropped module, which
// are as large as the adapter's effect, stand far outside, as do offsets in fp16 or bf16, whose roundings are 2^13 and 2^16
// times larger than fp32's.
inline constexpr double kMargin = 16;
MergeProof prove_merge(const fs::path& base, const io::AdapterFile& adapter, const fs::path& merged, const ProofTokens& tokens);

}  // namespace qalora::eval
