// From a quantised checkpoint and an adapter to a quantised checkpoint: only offsets change, tensor by tensor.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "qalora/io/adapter_file.h"
#include "qalora/io/checkpoint.h"

namespace qalora::model {

// UserError or DataError when the adapter cannot be merged into this base, with the reason and what to do: dense base,
// ordinary LoRA, another base or another state of it, another group size, modules that do not exist, an adapter that is
// merged already, files beside the weights that cannot be copied. An adapter that does not say on which base it was
// trained is one too, unless accept_unknown_base.
void check_mergeable(const io::Checkpoint& base, const fs::path& adapter_folder, const io::AdapterFile& adapter,
                     bool accept_unknown_base);

// UserError when config.json says that the model contains this adapter already.
void require_not_merged(const fs::path& model, const fs::path& adapter_folder);

// Logs a warning when an adapter that pools its inputs does not say on which offsets and dense tensors it was trained.
void warn_of_unknown_base(const io::AdapterConfig& adapter, const fs::path& adapter_folder, const fs::path& model);

// Makes a model's configuration (config.json) say so.
void mark_merged(nlohmann::json& config, const fs::path& adapter_folder);

// Writes the merged checkpoint into `folder`, usually a staging folder. Offsets of merged modules become fp32; all
// other bytes are copied. -> number of modules merged.
int64_t merge_checkpoint(const io::Checkpoint& base, const fs::path& adapter_folder, const io::AdapterFile& adapter,
                         const fs::path& folder);

// The bytes of the merged checkpoint's tensors.
uint64_t merged_bytes(const io::Checkpoint& base, const io::AdapterFile& adapter);

// What differs between two checkpoints of the same tensors, in bytes. Where an offset's dtype differs, all its bytes
// count.
struct ByteChanges {
  uint64_t codes = 0, scales = 0, offsets = 0, others = 0;
};
// Compares every tensor byte by byte. DataError when one has a tensor that the other lacks.
ByteChanges compare_bytes(const io::Checkpoint& base, const io::Checkpoint& merged);

}  // namespace qalora::model
