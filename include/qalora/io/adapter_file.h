// adapter_model.safetensors + adapter_config.json: PEFT's key names, with our fields for pooling and fingerprint.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qalora/core/file.h"
#include "qalora/io/safetensors.h"

namespace qalora::io {

enum class Pooling { kNone, kSum, kMean };     // kNone: an ordinary LoRA on the full inputs
std::string pooling_name(Pooling pooling);     // "none", "sum", "mean"
Pooling parse_pooling(std::string_view name);  // UserError

// Who wrote an adapter, and with it what its numbers mean. All of them are read as y += scaling * B A pool(x):
enum class AdapterOrigin {
  kOwn,       // scaling = alpha / rank; pooling as the file says
  kLora,      // an ordinary LoRA: alpha / rank, with rsLoRA alpha / sqrt(rank); no pooling
  kPeft,      // PEFT's use_qalora averages over the group and multiplies by the NUMBER of groups: mean pooling, each
              // module's own scaling alpha / rank * in_features / group_size
  kOfficial,  // the official QA-LoRA code: mean pooling, alpha / rank
};
std::string origin_name(AdapterOrigin origin);

struct AdapterConfig {
  AdapterOrigin origin = AdapterOrigin::kOwn;
  int64_t rank = 0;  // of a module that has none of its own (AdapterWeights::a)
  double alpha = 0;
  double scaling = 0;  // alpha / rank: what multiplies B A pool(x), in modules that have none of their own
  double dropout = 0;
  Pooling pooling = Pooling::kSum;
  int64_t group_size = 0;              // 0 for an ordinary LoRA; -1 for whole-row groups
  std::vector<std::string> targets;    // "q_proj", ...
  std::string base_fingerprint;        // of the quantised base's codes and scales; "" for a dense one
  std::string base_state_fingerprint;  // of the base's offsets and dense tensors; "" for a dense one
  std::string base_model;              // path it was trained on, informative
  std::string training_data;           // path of the data file, used by merge's proof; "" if unknown
};

// A and B of one linear, by module path "model.layers.0.self_attn.q_proj".
struct AdapterWeights {
  at::Tensor a;                            // [rank, groups] f32 (ordinary LoRA: [rank, in_features])
  at::Tensor b;                            // [out_features, rank] f32
  std::optional<double> own_scaling = {};  // the module's, where it is not the configuration's

  double scaling(const AdapterConfig& config) const { return own_scaling.value_or(config.scaling); }
};

struct AdapterFile {
  AdapterConfig config;
  std::map<std::string, AdapterWeights> modules;
};

// folder: an adapter folder, a checkpoint folder, or a run folder (its adapter/ is taken, else its newest checkpoint).
fs::path find_adapter(const fs::path& folder);  // UserError that says what was looked for
// Its file of tensors: adapter_model.safetensors, else adapter_model.bin as torch.save wrote it. DataError when there
// is neither.
fs::path adapter_tensor_file(const fs::path& folder);
std::unique_ptr<TensorSource> open_adapter_tensors(const fs::path& folder);
AdapterFile read_adapter(const fs::path& folder);
// Byte-for-byte a function of its arguments. Writes into `folder` (usually a staging folder), which exists.
void write_adapter(const fs::path& folder, const AdapterFile& adapter);
// An ordinary LoRA (pooling kNone) as PEFT itself writes it, without our fields and in the dtype of its tensors.
void write_peft_lora(const fs::path& folder, const AdapterFile& adapter);

}  // namespace qalora::io
