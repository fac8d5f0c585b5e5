// config.json of the LLaMA family. What would change the result and is not supported is an error that names the key.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::io {
class Checkpoint;
}

namespace qalora::model {

enum class RopeKind { kDefault, kLinear, kDynamic, kLlama3, kYarn };

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  std::optional<double> attention_factor;            // yarn; default 0.1 ln(factor) + 1
  std::optional<double> mscale, mscale_all_dim;      // yarn, as DeepSeek writes it
  bool truncate = true;                              // yarn: round the ramp's ends to whole dimensions
  int64_t original_context = 0;                      // original_max_position_embeddings; 0: max_position_embeddings

  bool operator==(const RopeConfig&) const = default;
};

struct QuantizationConfig {
  int bits = 0;
  int64_t group_size = 0;                                  // quant::kWholeRow for whole rows
  std::map<std::string, QuantizationConfig> modules = {};  // those that differ, by path "model.layers.0.mlp.up_proj"

  // Of one module; without `modules`.
  QuantizationConfig of(const std::string& module) const;
  // Its group size in inputs, of a layer with so many.
  int64_t group_size_of(const std::string& module, int64_t in_features) const;
};

struct LlamaConfig {
  std::string model_type;  // "llama", "mistral", "qwen2", "qwen3"
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0;
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t context_length = 0;  // max_position_embeddings
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool tied_head = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;  // each head of q and k is normed before it is rotated (Qwen3)
  RopeConfig rope;
  std::optional<QuantizationConfig> quantization;  // absent for a dense checkpoint

  int64_t parameters() const;
};

// `name` (a path) begins every message.
LlamaConfig parse_config(const nlohmann::json& json, const std::string& name);
LlamaConfig read_config(const fs::path& model);  // a folder, or a single file that holds a model
LlamaConfig read_config(const io::Checkpoint& checkpoint);

// config.json of a derived checkpoint: the source's keys, plus rope in the old and the new spelling,
// tie_word_embeddings written out, and the quantisation in both of MLX's places (absent: removed).
nlohmann::json derived_config(const nlohmann::json& source, const LlamaConfig& config,
                              const std::optional<QuantizationConfig>& quantization);

}  // namespace qalora::model
