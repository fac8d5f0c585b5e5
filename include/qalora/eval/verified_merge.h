// A merge that is put in place only when it is proved.
#pragma once

#include "qalora/eval/merge_proof.h"
#include "qalora/model/merge_checkpoint.h"

namespace qalora::eval {

struct MergeReport {
  int64_t layers = 0;
  uint64_t bytes = 0;  // of the written tensors
  model::ByteChanges changes;
  OffsetCheck offsets;
  MergeProof logits;
};

// Writes the merged checkpoint beside `out`, compares what was written with the base and the adapter - every byte,
// every offset, and the logits on `tokens` - and only then gives it its name. VerificationError, and nothing new at
// `out`, when anything but rounding differs. device: where the logits are computed. replace: an existing `out` gives
// way. The adapter has passed model::check_mergeable.
MergeReport merge_verified(const io::Checkpoint& base, const fs::path& adapter_folder, const io::AdapterFile& adapter,
                           const ProofTokens& tokens, const fs::path& out, bool replace,
                           c10::Device device = c10::kCPU);

}  // namespace qalora::eval
