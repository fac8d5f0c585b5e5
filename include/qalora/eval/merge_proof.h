// The proof that a merge lost nothing: base + adapter and the merged checkpoint, as written, on the same tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"
#include "qalora/model/config.h"

namespace qalora::eval {

struct ProofTokens {
  std::vector<std::vector<int64_t>> sequences;
  std::string source;  // "4 records of data.json", "built-in text", "pseudo-random ids"
};

// The first records of the training file when it is there and can be read, else a built-in paragraph; pseudo-random ids
// for a model without a tokenizer.
ProofTokens proof_tokens(const fs::path& model, const model::LlamaConfig& config, const std::string& training_data);
// Of a file that the person named: what is wrong with it is an error.
ProofTokens proof_tokens_of(const fs::path& model, const model::LlamaConfig& config, const std::string& data);

// Every offset that was written against base + k B A, computed here in double by plain loops that share nothing with
// quant::merge.
struct OffsetCheck {
  double worst =
      0;  // largest error, in units of what one correct rounding to fp32 (half a unit in the last place) may do
  std::string worst_name;  // the tensor it stands in
  int64_t offsets = 0;  // how many were compared; those that no module of the adapter moves must be the same to the bit
  bool exact() const { return worst <= 1; }  // false for NaN
};
OffsetCheck check_offsets(const io::Checkpoint& base, const io::AdapterFile& adapter, const io::Checkpoint& merged);

struct MergeProof {
  double max_logit_difference = 0;  // merged against base + adapter
  double tolerance = 0;
  double effect = 0;  // base + adapter against base: what the adapter does at all
  int64_t tokens = 0;
  // False for NaN, and where rounding moves nothing: logits that overflowed to a constant would agree with anything.
  bool verified() const { return tolerance > 0 && max_logit_difference <= tolerance; }
  // Could these logits tell the merged model from the base? Where rounding alone does as much as the adapter they
  // cannot, and the offsets alone are the proof.
  bool decides() const { return effect > tolerance; }
};

// Runs base, base + adapter and merged in fp32.
//
// The tolerance is measured, because how far one rounding travels depends on the model. In exact arithmetic the two
// models are one function. In fp32 they differ because (1) each merged offset was rounded once, by at most 2^-24 of
// itself, and (2) sums of different addends round differently. So base + adapter is run kDraws times more with every
// offset b of a merged module moved, up or down at random, by 2^-23 (|b| + |k B A|): at least twice what (1) can do,
// and it makes every sum behind it round anew, which is (2). The largest logit difference that this causes in any draw
// is the rounding's own size in this model on these tokens, and kMargin times that is the tolerance.
//
// What it cannot see: an adapter whose parts cancel (B A small, |B| |A| large) rounds its own sums badly, and the
// tolerance grows with them; an adapter that was hardly trained does less than rounding does. check_offsets does not
// depend on either.
inline constexpr double kMargin = 16;
inline constexpr int kDraws = 3;
// On an accelerator the adapter runs beside its base too: folded into the offsets it would be what is to be proved.
MergeProof prove_merge(const fs::path& base, const io::AdapterFile& adapter, const fs::path& merged,
                       const ProofTokens& tokens, c10::Device device = c10::kCPU);

}  // namespace qalora::eval
