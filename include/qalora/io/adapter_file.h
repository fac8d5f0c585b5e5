// adapter_model.safetensors + adapter_config.json: PEFT's key names, with our fields for pooling and fingerprint.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/io/safetensors.h"

namespace qalora::io {

enum class Pooling { kNone, kSum, kMean };  // kNone: an ordinary LoRA on the full inputs
std::string pooling_name(Pooling pooling);  // "none", "sum", "mean"
Pooling parse_pooling(std::string_view name);  // UserError

struct AdapterConfig {
  int64_t rank = 0;
  double alpha = 0;
  double scaling = 0;       // alpha / rank: what multiplies B A pool(x)
  double dropout = 0;
  Pooling pooling = Pooling::kSum;
  int64_t group_size = 0;   // 0 for an ordinary LoRA; -1 for whole-row groups
  std::vector<std::string> targets;  // "q_proj", ...
  std::string base_fingerprint;      // of the quantised base's codes and scales; "" for a dense one
  std::string base_state_fingerprint;  // of the base's offsets and dense tensors; "" for a dense one
  std::string base_model;            // path it was trained on, informative
  std::string training_data;         // path of the data file, used by merge's proof; "" if unknown
};

// A and B of one linear, by module path "model.layers.0.self_attn.q_proj".
struct AdapterWeights {
  at::Tensor a;  // [rank, groups] f32 (ordinary LoRA: [rank, in_features])
  at::Tensor b;  // [out_features, rank] f32
};

struct AdapterFile {
  AdapterConfig config;
  std::map<std::string, AdapterWeights> modules;
};

// folder: an adapter folder, a checkpoint folder, or a run folder (its adapter/ is taken, else its newest checkpoint).
fs::path find_adapter(const fs::path& folder);  // UserError that says what was looked for
AdapterFile read_adapter(const fs::path& folder);
// Byte-for-byte a function of its arguments. Writes into `folder` (usually a staging folder), which exists.
void write_adapter(const fs::path& folder, const AdapterFile& adapter);

}  // namespace qalora::io
